"""The DVC stages of a run, in order, and the sets of them that other parts ask for."""

from __future__ import annotations

STAGES = ("validate", "clip", "encode", "distill", "evaluate", "export", "gate")
"""All stages after `params`, which resolves the configuration; each has a section of it."""
UP_TO_DISTILL = STAGES[: STAGES.index("distill") + 1]
"""Those that a budget may refuse: the money for what comes after them is reserved."""
AFTER_DISTILL = STAGES[STAGES.index("distill") + 1 :]
RAY_STAGES = ("encode", "distill")
"""Those that run on the Ray cluster, where there is one; the others run on the driver's machine."""
IDLE_STAGE = "waiting"
"""The ledger's name for the cost of cluster nodes that are idle while other stages run."""
