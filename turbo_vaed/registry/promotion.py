"""MLflow: what happened in a run, which versions there are, and which one is champion.

A customer has one experiment (`turbo-vaed/CUSTOMER`) and one registered model
(`turbo-vaed-CUSTOMER`), whose versions are packages with the verdict over them. The alias
`champion` is only ever set by `promote`, after it has fetched the bytes that users of the version
would get, hashed them anew, and found a passing verdict over exactly those.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from turbo_vaed.config.schema import check_customer_name
from turbo_vaed.errors import CorruptFile, GateRefused, UserError
from turbo_vaed.gate import VERDICT_NAME, Result, Verdict, read_verdict
from turbo_vaed.registry.approval import Approval, approve, is_approved, rationale_of
from turbo_vaed.registry.client import (
    end_runs,
    experiment_id,
    ignoring_existing,
    log_values,
    open_tracking,
    running,
    translated_errors,
)
from turbo_vaed.runtime.files import sha256_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from turbo_vaed.export import Package

Alias = Literal["champion", "candidate"]
CHAMPION: Alias = "champion"
CANDIDATE: Alias = "candidate"
PREVIOUS = "previous"

_PACKAGE = "package"
_TAG_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version of a customer's model."""

    name: str
    version: int
    mlflow_run_id: str
    package_sha256: str
    verdict_result: Result
    created: bool
    """False where the same package with the same verdict was registered before."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What became of a version."""

    name: str
    version: int
    alias: Alias
    reasons: tuple[str, ...]
    """Why it is only a candidate; empty for a champion."""
    previous_champion: int | None
    """The version that this one took the alias from."""


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """A line of `turbo-vaed registry list`."""

    version: int
    aliases: tuple[str, ...]
    verdict_result: str
    package_sha256: str
    promotion: str
    """`champion`, `candidate`, `refused`, or empty where promotion was not tried."""
    reasons: str
    """A line each."""
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """A line of `turbo-vaed registry audit`."""

    alias: str
    version: int
    approved_by: str
    approval_rationale: str
    approved_at: str
    wrong: tuple[str, ...]
    """Why the version should not have the alias; empty where all is well."""


def model_name(customer: str) -> str:
    """The registered model of a customer."""
    return f"turbo-vaed-{check_customer_name(customer)}"


def register(
    *,
    tracking_uri: str,
    run_id: str,
    customer: str,
    package_folder: Path,
    verdict_path: Path,
    metrics: Mapping[str, float],
    params: Mapping[str, object],
    lineage: Mapping[str, str],
    artifacts: Sequence[Path] = (),
) -> RegisteredVersion:
    """Log a run and register its package as a version, whatever its verdict says.

    The same package with the same verdict is registered once: a second call finds the version,
    logs nothing and returns it (unless its bytes were since found altered).

    Args:
        run_id: of the PoC run, a tag of the MLflow run.
        lineage: tags of the run and the version, for instance `git_revision`, `data_sha256`.
        artifacts: more files and folders to log with the run.

    Raises:
        GateRefused: the verdict is of another package or another customer.
        CorruptFile: the package or the verdict is cut short or altered.
        UserError, Unreachable, Fault: as `open_tracking`; a file that is not there.
    """
    name = model_name(customer)
    for path in (package_folder, verdict_path, *artifacts):
        if not path.exists():
            raise UserError(f"register: {path} does not exist; run the stages before it")
    if verdict_path.name != VERDICT_NAME:
        raise UserError(f"register: found {verdict_path.name}; expected a {VERDICT_NAME}")
    package, verdict = _load_package(package_folder), read_verdict(verdict_path)
    if mismatch := _binding_mismatch(verdict, customer, package.sha256):
        raise GateRefused(f"cannot register {package_folder}: {'; '.join(mismatch)}")
    identity = {"package_sha256": package.sha256, "verdict_sha256": sha256_file(verdict_path)}
    client = open_tracking(tracking_uri)
    # Its stages have ended, and so has a try to register it: MLflow was away then.
    end_runs(tracking_uri, customer, run_id, stages="FINISHED")
    with translated_errors(tracking_uri):
        found = _find(client, name, identity)
        created = found is None
        if found is None:
            tags = {
                **{key: str(value) for key, value in lineage.items()},
                **identity,
                "verdict_result": verdict.result,
                "turbo_vaed_run_id": run_id,
            }
            experiment = experiment_id(client, tracking_uri, customer)
            with running(client, experiment, run_id, tags) as mlflow_run_id:
                log_values(client, mlflow_run_id, metrics, params)
                client.log_artifacts(mlflow_run_id, str(package_folder), _PACKAGE)
                for path in (verdict_path, *artifacts):
                    client.log_artifact(mlflow_run_id, str(path))
                found = _create_version(client, name, mlflow_run_id, tags)
    return RegisteredVersion(
        name=name,
        version=int(found.version),
        mlflow_run_id=str(found.run_id),
        package_sha256=package.sha256,
        verdict_result=verdict.result,
        created=created,
    )


def promote(
    *, tracking_uri: str, customer: str, version: int, approval: Approval | None = None
) -> Promotion:
    """Make a version champion if, and only if, a passing verdict stands over exactly its bytes.

    A version that fails its gate, or that a person must approve first, becomes `candidate`, its
    reasons a tag of the version. The old champion gets the alias `previous`. An `approval` is
    recorded with the version, for exactly its bytes: who, why and when.

    Raises:
        GateRefused: the package or the verdict is not what was registered, or is of something
            else. The version loses its aliases, and its tags say why.
        UserError: no such version. Unreachable, Fault: as `open_tracking`.
    """
    name = model_name(customer)
    client = open_tracking(tracking_uri)
    with translated_errors(tracking_uri):
        found = _get_version(client, name, version)
        if approval is not None:
            found = approve(client, found, approval)
        reasons, altered = _examine(client, tracking_uri, found, customer)
        if altered:
            _leave_only(client, name, version, alias=None)
            _mark(client, name, version, "refused", altered)
            raise GateRefused(
                f"{name} version {version} cannot be promoted: {'; '.join(altered)}. "
                "Run the PoC again to register what it really made"
            )
        alias = CANDIDATE if reasons else CHAMPION
        before = _aliases(client, name).get(CHAMPION)
        previous = None if reasons or before == version else before
        if previous is not None:  # first, so that no crash loses the way back
            client.set_registered_model_alias(name, PREVIOUS, str(previous))
        client.set_registered_model_alias(name, alias, str(version))
        _leave_only(client, name, version, alias=alias)
        _mark(client, name, version, alias, reasons)
    return Promotion(
        name=name,
        version=version,
        alias=alias,
        reasons=tuple(reasons),
        previous_champion=previous,
    )


def audit(tracking_uri: str, customer: str) -> tuple[AuditRow, ...]:
    """Every version that holds an alias, its bytes and its verdict examined again."""
    name = model_name(customer)
    client = open_tracking(tracking_uri)
    rows = []
    with translated_errors(tracking_uri):
        for alias, number in sorted(_aliases(client, name).items()):
            version = _get_version(client, name, number)
            reasons, altered = _examine(client, tracking_uri, version, customer)
            wrong = altered + (reasons if alias in (CHAMPION, PREVIOUS) else [])
            rows.append(
                AuditRow(
                    alias=alias,
                    version=number,
                    approved_by=version.tags.get("approved_by", ""),
                    approval_rationale=rationale_of(version),
                    approved_at=version.tags.get("approved_at", ""),
                    wrong=tuple(wrong),
                )
            )
    return tuple(rows)


def versions(tracking_uri: str, customer: str) -> tuple[VersionRow, ...]:
    """Every version of a customer's model, the newest first; empty where there is none."""
    name = model_name(customer)
    client = open_tracking(tracking_uri)
    with translated_errors(tracking_uri):
        aliases = _aliases(client, name)
        found = _search(client, name)
    return tuple(
        VersionRow(
            version=int(each.version),
            aliases=tuple(sorted(a for a, v in aliases.items() if v == int(each.version))),
            verdict_result=each.tags.get("verdict_result", "unknown"),
            package_sha256=each.tags.get("package_sha256", "unknown"),
            promotion=each.tags.get("promotion", ""),
            reasons=each.tags.get("promotion_reasons", ""),
            created_at=datetime.fromtimestamp(each.creation_timestamp / 1000, UTC),
        )
        for each in sorted(found, key=lambda each: -int(each.version))
    )


def _examine(
    client: MlflowClient, uri: str, version: ModelVersion, customer: str
) -> tuple[list[str], list[str]]:
    """Why a version cannot be champion (its checks), and what about it was altered."""
    import mlflow.artifacts

    run_id = version.run_id or ""
    held = {file.path for file in client.list_artifacts(run_id)} if run_id else set()
    if missing := [path for path in (_PACKAGE, VERDICT_NAME) if path not in held]:
        return [], [f"{' and '.join(missing)} missing from its artifacts"]
    # What a user of the version would get, which need not be the run's own folder.
    source = client.get_model_version_download_uri(version.name, str(version.version))
    with tempfile.TemporaryDirectory() as scratch:
        for folder in ("package", "verdict"):
            (Path(scratch) / folder).mkdir()
        package_folder = mlflow.artifacts.download_artifacts(
            artifact_uri=source, dst_path=f"{scratch}/package", tracking_uri=uri
        )
        verdict_path = Path(client.download_artifacts(run_id, VERDICT_NAME, f"{scratch}/verdict"))
        try:
            sha256 = _load_package(Path(package_folder)).sha256
            verdict = read_verdict(verdict_path)
        except CorruptFile as error:
            return [], [str(error).replace(f"{scratch}/", "")]
        altered = _binding_mismatch(verdict, customer, sha256)
        for what, now in (("package", sha256), ("verdict", sha256_file(verdict_path))):
            then = version.tags.get(f"{what}_sha256")
            if now != then:
                altered.append(f"its {what} has sha256 {now}; {then} was registered")
    reasons = [check.reason for check in verdict.not_passed]
    if verdict.needs_approval and not is_approved(version, sha256):
        reasons.append(f"use case {verdict.use_case} needs a person's approval")
    return reasons, altered


def _binding_mismatch(verdict: Verdict, customer: str, package_sha256: str) -> list[str]:
    """How the verdict is not about exactly this customer's package; empty where it is."""
    found = []
    if verdict.package_sha256 != package_sha256:
        found.append(
            f"its verdict is of a package with sha256 {verdict.package_sha256}, "
            f"its own bytes have {package_sha256}"
        )
    if verdict.customer != customer:
        found.append(f"its verdict is of customer {verdict.customer!r}, not {customer!r}")
    return found


def _load_package(folder: Path) -> Package:
    """A package whose files are all listed and verified."""
    from turbo_vaed.export.package import MANIFEST_NAME, load_package

    try:
        package = load_package(folder)
    except (ValueError, FileNotFoundError) as error:
        raise CorruptFile(f"not a whole package: {error}") from error
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if extra := held - {file.name for file in package.files} - {MANIFEST_NAME}:
        raise CorruptFile(f"{folder} has files that are not listed in its package.json: {extra}")
    return package


def _leave_only(client: MlflowClient, name: str, version: int, *, alias: str | None) -> None:
    """Remove our aliases from a version, except one."""
    for held, at in _aliases(client, name).items():
        if at == version and held in (CHAMPION, CANDIDATE, PREVIOUS) and held != alias:
            client.delete_registered_model_alias(name, held)


def _mark(
    client: MlflowClient, name: str, version: int, promotion: str, reasons: Sequence[str]
) -> None:
    text = "\n".join(reasons)[:_TAG_CHARACTERS] or "every check passes"
    for key, value in (("promotion", promotion), ("promotion_reasons", text)):
        client.set_model_version_tag(name, str(version), key, value)


def _search(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _find(client: MlflowClient, name: str, identity: Mapping[str, str]) -> ModelVersion | None:
    """The newest version with these tags that was not refused."""
    for each in sorted(_search(client, name), key=lambda each: -int(each.version)):
        if identity.items() <= each.tags.items() and each.tags.get("promotion") != "refused":
            return each
    return None


def _get_version(client: MlflowClient, name: str, version: int) -> ModelVersion:
    for each in (known := _search(client, name)):
        if int(each.version) == version:
            return each
    have = ", ".join(str(n) for n in sorted(int(each.version) for each in known)) or "none"
    raise UserError(f"{name} has no version {version}; there are: {have}")


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    if not _search(client, name):
        return {}
    return {alias: int(v) for alias, v in client.get_registered_model(name).aliases.items()}


def _create_version(
    client: MlflowClient, name: str, mlflow_run_id: str, tags: Mapping[str, str]
) -> ModelVersion:
    with ignoring_existing():
        client.create_registered_model(name)
    return client.create_model_version(
        name, f"runs:/{mlflow_run_id}/{_PACKAGE}", mlflow_run_id, tags=dict(tags)
    )
