"""Stage `params`: a customer's params, resolved, a file per section.

A DVC stage depends on the file of its own section, so that an edit of params.yaml reruns what it
touches and nothing more. What else a stage reads stands in its file too.
"""

from __future__ import annotations

from typing import Any

import yaml

from turbo_vaed.config import load
from turbo_vaed.config.stages import STAGES
from turbo_vaed.workspace import Workspace


def run(workspace: Workspace) -> dict[str, object]:
    """Write work/CUSTOMER/params/SECTION.yaml for every stage."""
    resolved = load.scalars(load.plain(workspace.params))
    sections: dict[str, Any] = {name: resolved[name] for name in STAGES}
    limits = {key: resolved["budget"][key] for key in ("run_usd", "reserve_seconds")}
    sections["distill"] = {**sections["distill"], "budget": limits}
    if resolved["distill"].get("stop_psnr_margin_db") is not None:  # else the gate is not looked at
        asked = ("min_psnr", "min_psnr_retention", "min_ssim", "min_ms_ssim", "min_worst_psnr",
                 "max_flicker", "min_detail_retention")  # fmt: skip
        sections["distill"]["thresholds"] = {key: resolved["thresholds"][key] for key in asked}
        sections["distill"]["worst_share"] = resolved["evaluate"]["worst_share"]
    sections["export"] = {**sections["export"], "device_shape": resolved["device"].get("shape")}
    sections["gate"] = {
        **sections["gate"],
        "device": resolved["device"],  # the profile: an edit of it reruns the gate alone
        "use_case": resolved["use_case"],
        "thresholds": resolved["thresholds"],
    }
    sections["validate"] = {**sections["validate"], "source": resolved["source"]}
    with workspace.writing("params") as folder:
        for name, section in sections.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(section, sort_keys=True))
    return {"sections": len(sections)}
