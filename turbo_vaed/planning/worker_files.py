"""Where the workers of a stage read and write: this machine's folders, which must then be theirs
too, or on a cluster with `TURBO_VAED_ARRAYS` copies by content and new places, by URL."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from turbo_vaed.cluster.session import ray_session
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.runtime.files import read_json, write_json
from turbo_vaed.settings import Settings
from turbo_vaed.storage import published
from turbo_vaed.workspace import Workspace

if TYPE_CHECKING:  # it takes PyTorch, which a run that has nothing to do does not
    from turbo_vaed.distill.teacher_cache import TeacherTargetsSpec

CLIPS, LATENTS, TEACHER, PERCEPTUAL, TARGETS = "clip", "encode", "teacher", "perceptual", "targets"
PARTS = {CLIPS: ("clips.json", "clips.zarr"), LATENTS: ("latents.json", "latents.zarr")}
"""Of a stage's folder, what workers read."""
RECORD_FILE = "shared.json"
"""In the customer's folder: which copies its stages have given to workers."""
_PROBE_SECONDS = 60.0


def for_workers(workspace: Workspace, settings: Settings, what: str) -> str:
    """The path, or the URL of a copy, of `CLIPS`, `LATENTS`, `TEACHER` or `PERCEPTUAL`.

    Raises:
        UserError, Unreachable: as `published.publish`.
    """
    place, prefix = _place(workspace, what), settings.shared_prefix(workspace.customer)
    if prefix is None:
        return str(place)
    url = published.publish(place, prefix, what, parts=PARTS.get(what, ("",)))
    _remember(workspace, urls={what: url})
    return url


def targets_for_workers(
    workspace: Workspace, settings: Settings, spec: TeacherTargetsSpec
) -> TeacherTargetsSpec:
    """`spec` with the place of its targets: one for each content, where it is a URL."""
    prefix = settings.shared_prefix(workspace.customer)
    if prefix is None:
        return spec
    url = f"{prefix}/{TARGETS}/{spec.key()[:16]}"
    _remember(workspace, urls={TARGETS: url})
    return replace(spec, targets=url)


def new_latents(workspace: Workspace, settings: Settings, folder: Path) -> str:
    """Where workers write latents: into the stage's folder, or to a URL of their own."""
    prefix = settings.shared_prefix(workspace.customer)
    return str(folder) if prefix is None else published.new_prefix(prefix, LATENTS)


def fetch_latents(workspace: Workspace, settings: Settings, url: str, folder: Path) -> None:
    """Fetch what workers wrote at a URL of `new_latents` into the stage's folder.

    Raises:
        CorruptFile, UserError, Unreachable: as `published.fetch`.
    """
    if settings.shared_prefix(workspace.customer) is None:
        return
    published.fetch(url, folder, "fetching latents")


def keep_latents(workspace: Workspace, settings: Settings, url: str, folder: Path) -> None:
    """Record that the stage's folder, now whole, is what lies at the URL of `new_latents`.

    Raises:
        UserError, Unreachable: as `published.publish`.
    """
    prefix = settings.shared_prefix(workspace.customer)
    if prefix is not None:
        published.adopt(folder, url, prefix, LATENTS, parts=PARTS[LATENTS])
        _remember(workspace, urls={LATENTS: url})


def shared_now(workspace: Workspace) -> dict[str, Any]:
    """`urls` of what stages last gave to workers, by kind; empty where nothing was."""
    try:
        return read_json(_record(workspace))
    except (FileNotFoundError, CorruptFile):
        return {}


def remove_unused(workspace: Workspace, settings: Settings) -> int:
    """Remove the copies that no stage's present input is; returns their bytes.

    Raises:
        UserError, Unreachable: as `published.remove`.
    """
    prefix, urls = settings.shared_prefix(workspace.customer), shared_now(workspace).get("urls")
    if prefix is None or not urls:  # a checkout that knows of none
        return 0
    return published.remove(prefix, keep=urls.values())


def check_reach(workspace: Workspace, settings: Settings) -> None:
    """Check that the nodes of a cluster reach what a stage gives its workers.

    Without `TURBO_VAED_ARRAYS` each node looks for a file in the customer's folder. A node that
    joins later is not asked; its workers say what is missing.

    Raises:
        UserError: a node does not see this machine's disk; there is no such bucket; or checkpoints
            would stay on the nodes.
        Unreachable: no Ray answers, or no S3.
    """
    if not settings.on_a_cluster:
        return
    prefix = settings.shared_prefix(workspace.customer)
    if prefix is not None:
        if settings.checkpoints_url is None:
            raise UserError(
                "TURBO_VAED_ARRAYS is set, since the nodes of the cluster share no disk with this "
                "machine; then checkpoints must not stay on them either: set "
                "TURBO_VAED_CHECKPOINTS=s3://BUCKET/PREFIX"
            )
        published.stored_files(f"{prefix}/{CLIPS}/none")  # to see the bucket
        return
    probe = workspace.work / f".seen-by-nodes-{uuid4().hex}"
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    try:
        with ray_session(settings.ray_address):
            blind = _nodes_without(probe)
    finally:
        probe.unlink()
    if blind:
        raise UserError(
            f"{', '.join(blind)} of the Ray cluster cannot see {workspace.work} of this machine "
            f"({socket.gethostname()}), where workers would read clips and latents: set "
            "TURBO_VAED_ARRAYS and TURBO_VAED_CHECKPOINTS to s3://BUCKET/PREFIX, or give all nodes "
            "one file system with this checkout"
        )


def _nodes_without(path: Path) -> list[str]:
    """Addresses of the nodes that see no such file; one that does not answer is left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(_sees)
    asked = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = task.options(num_cpus=0, max_retries=0, scheduling_strategy=here)
            asked[answer.remote(str(path))] = str(node["NodeManagerAddress"])
    blind = []
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_SECONDS)
    for answer in done:
        try:
            if not ray.get(answer):
                blind.append(asked[answer])
        except ray.exceptions.RayError:  # it has left
            continue
    return sorted(blind)


def _sees(path: str) -> bool:
    try:
        open(path, "rb").close()
    except OSError:
        return False
    return True


def _place(workspace: Workspace, what: str) -> Path:
    if what == TEACHER:
        return workspace.teacher_weights()
    if what == PERCEPTUAL:
        found = workspace.perceptual_weights()
        assert found is not None, "asked for where there is one"
        return found
    return workspace.folder(what)


def _record(workspace: Workspace) -> Path:
    return workspace.work / RECORD_FILE


def _remember(workspace: Workspace, **facts: dict[str, Any]) -> None:
    known = shared_now(workspace)
    write_json(_record(workspace), known | {k: known.get(k, {}) | v for k, v in facts.items()})
