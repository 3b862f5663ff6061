"""Keys of earlier versions, and what to write in their place."""

from __future__ import annotations

RENAMED = {"max_others_share": "max_background_cpu_share", "because": "rationale"}
"""Keys that have another name now; `turbo-vaed config migrate` writes it."""
REMOVED = {
    "warmup": "it is gate.max_warmup now, the most runs before the first sample",
    "samples": "they are gate.min_samples and gate.max_samples now",
    "min_parity_psnr": "it is export.min_parity_db now, a PSNR for each precision",
    "target": "it is export.targets now, a list of RUNTIME/PRECISION",
}
"""Keys whose value has another form now, so that a person has to write it."""


def advice(key: str) -> str:
    """What to write in place of a key of an earlier version; empty for any other key."""
    if new := RENAMED.get(key):
        return f"it is named {new} now"
    return REMOVED.get(key, "")
