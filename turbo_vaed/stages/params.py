"""Stage `params`: a customer's params, resolved, a file per stage.

A DVC stage depends on the file of its own section, so that an edit of the configuration reruns what
it touches and nothing more. What else decides what a stage puts out stands in its file as a digest.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import yaml

from turbo_vaed.config.devices import AdbProfile, AppleProfile, DeviceProfile, FarmProfile
from turbo_vaed.config.sections import sections
from turbo_vaed.config.stages import STAGES
from turbo_vaed.errors import UserError
from turbo_vaed.runtime.digests import DigestCache
from turbo_vaed.runtime.files import sha256_json, write_text
from turbo_vaed.workspace import Workspace

DIGESTS = "state/digests.json"
"""Of the checkout: digests of large files, remembered."""
_TEACHER_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_HOST_RUNTIMES = ("executorch", "onnxruntime", "ai-edge-litert", "torch")
"""Distributions that measuring processes on this host compute with."""


def run(workspace: Workspace) -> dict[str, object]:
    """Write work/CUSTOMER/params/STAGE.yaml for every stage, and costs.yaml; a file that says the
    same as before is left as it is.

    Raises:
        UserError: no teacher, or no file of perceptual weights, where the params name one.
        Refused: a stage of the customer is running, and its section would change.
    """
    folder = workspace.folder("params")
    texts = section_texts(workspace, DigestCache(workspace.root / DIGESTS))
    changed = [name for name, text in texts.items() if _is_other(folder / f"{name}.yaml", text)]
    if changed:
        with workspace.writing_sections():
            for name in changed:
                write_text(folder / f"{name}.yaml", texts[name])
    return {"changed": changed}


def section_texts(workspace: Workspace, cache: DigestCache) -> dict[str, str]:
    """The text of each file that this version writes, by its stage, and that of costs.yaml.

    Raises:
        UserError: as `run`.
    """
    found = sections(workspace.params)
    for stage in STAGES:
        found[stage]["stage_version"] = stage_version(stage)
    for stage, digests in _digests(workspace, cache).items():
        found[stage] |= digests
    return {name: _as_yaml(json.dumps(section)) for name, section in found.items()}


@functools.lru_cache(maxsize=1024)
def _as_yaml(section: str) -> str:
    """The text of a section that is given as JSON. Writing YAML takes longer than all else, and
    most sections of most customers are the same."""
    return yaml.safe_dump(json.loads(section), sort_keys=True)


def _is_other(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != text


def stage_version(stage: str) -> int:
    """`STAGE_VERSION` of a stage's module, read as text: importing it costs seconds."""
    text = Path(__file__).with_name(f"{stage}.py").read_text(encoding="utf-8")
    (version,) = re.findall(r"^STAGE_VERSION = (\d+)$", text, re.MULTILINE)
    return int(version)


def _digests(workspace: Workspace, cache: DigestCache) -> dict[str, dict[str, str | None]]:
    """What decides besides the values, by stage."""
    params = workspace.params
    teacher = cache.sha256_folder(workspace.teacher_weights(), _TEACHER_FILES)
    return {
        "encode": {"teacher_sha256": teacher},
        "distill": {
            "teacher_sha256": teacher,
            "perceptual_weights_sha256": _perceptual_weights(workspace, cache),
        },
        "gate": {
            "teacher_sha256": teacher,
            "runner_sha256": runner_sha256(params.device, workspace.root, cache),
            "policy_sha256": sha256_json(sections(params)["gate"]["thresholds"]),
        },
    }


def _perceptual_weights(workspace: Workspace, cache: DigestCache) -> str | None:
    path = workspace.perceptual_weights()
    try:
        return None if path is None else cache.sha256(path)
    except OSError as error:
        raise UserError(f"distill.perceptual_weights: {error}") from None


def runner_sha256(profile: DeviceProfile, root: Path, cache: DigestCache) -> str:
    """The digest of what runs packages on a device and is not ours: the profile's runner, and on
    this host the versions of the libraries that measuring processes compute with. Our own part is
    the gate's `STAGE_VERSION`: a comment in it measures no phone again."""
    facts: dict[str, Any] = {}
    if isinstance(profile, (AdbProfile, FarmProfile)):
        runner = root / profile.runner
        facts["runner"] = cache.sha256(runner) if runner.is_file() else None  # the gate says so
    elif not isinstance(profile, AppleProfile):
        facts["versions"] = {name: _version(name) for name in _HOST_RUNTIMES}
    return sha256_json(facts)


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
