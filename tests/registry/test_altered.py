"""Packages and verdicts that were altered are never promoted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.registry.stored import Make, aliases, artifact, edit, put
from turbo_vaed.errors import CorruptFile, GateRefused
from turbo_vaed.export.package import MANIFEST_NAME, load_package
from turbo_vaed.registry.promotion import promote, versions


def _flip_a_bit(package: Path, verdict: Path) -> None:
    program = package / "decoder.pte"
    program.write_bytes(bytes([program.read_bytes()[0] ^ 1]) + program.read_bytes()[1:])


def _swap_program_and_its_hashes(package: Path, verdict: Path) -> None:
    """A whole, consistent package: only not the one that was measured."""
    from turbo_vaed.export.package import write_package

    io = load_package(package).io
    program = package.parent / "decoder.pte"
    program.write_bytes(b"another program")
    write_package(package, program, io, tools=("numpy",))


def _swap_program_hashes_and_verdict(package: Path, verdict: Path) -> None:
    """As above, and the verdict is about the new bytes: only not the one that was registered."""
    _swap_program_and_its_hashes(package, verdict)
    edit(verdict, lambda d: d.update(package_sha256=load_package(package).sha256))


def _widen_the_io_spec(package: Path, verdict: Path) -> None:
    edit(package / MANIFEST_NAME, lambda d: d["io"].update(video_range=[0.0, 1.0]))


def _smuggle_a_file(package: Path, verdict: Path) -> None:
    (package / "extra.pte").write_bytes(b"stowaway")


def _cut_the_program_short(package: Path, verdict: Path) -> None:
    (package / "decoder.pte").write_bytes(b"a pro")


def _say_it_passes(package: Path, verdict: Path) -> None:
    edit(verdict, lambda d: d.update(result="passes"))


def _say_every_check_passes(package: Path, verdict: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["result"] = "passes"
        for check in document["checks"]:
            check["result"] = "passes"

    edit(verdict, change)


def _invent_measurements(package: Path, verdict: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["result"] = "passes"
        for check in document["checks"]:
            check.update(result="passes", measured=check["limit"], low=None, high=None)

    edit(verdict, change)


def _approve_it(package: Path, verdict: Path) -> None:
    edit(verdict, lambda d: d.update(needs_approval=False))


def _drop_the_checks(package: Path, verdict: Path) -> None:
    edit(verdict, lambda d: d.update(result="passes", checks=[]))


def _cut_the_verdict_short(package: Path, verdict: Path) -> None:
    verdict.write_text(verdict.read_text()[:200])


def _lose_the_verdict(package: Path, verdict: Path) -> None:
    verdict.unlink()


ALTERED_BYTES = [
    (_flip_a_bit, "found sha256"),
    (_swap_program_and_its_hashes, "with sha256"),
    (_swap_program_hashes_and_verdict, "was registered"),
    (_widen_the_io_spec, "own sha256"),
    (_smuggle_a_file, "extra.pte"),
    (_cut_the_program_short, "found 5 bytes, expected 9"),
]


DOCTORED_VERDICTS = [
    (_say_it_passes, "'passes', its checks"),
    (_say_every_check_passes, "result of psnr"),
    (_invent_measurements, "verdict has sha256"),
    (_approve_it, "verdict has sha256"),
    (_drop_the_checks, "expected psnr_retention"),
    (_cut_the_verdict_short, "valid JSON"),
    (_lose_the_verdict, "verdict.json missing"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("alter", "message"), ALTERED_BYTES)
def test_altered_bytes_are_refused(
    store: str, make: Make, alter: Callable[[Path, Path], None], message: str
) -> None:
    made = make()
    found = put(store, made)
    promote(tracking_uri=store, customer="demo", version=1)
    alter(artifact(store, found, "package"), artifact(store, found, "verdict.json"))
    with pytest.raises(GateRefused, match=re.escape(message)):
        promote(tracking_uri=store, customer="demo", version=1)
    assert aliases(store) == {}, "what is refused is no champion any more"
    (row,) = versions(store, "demo")
    assert row.promotion == "refused" and message in row.reasons
    again = put(store, made)
    assert again.created and again.version == 2, "what the run really made can be registered anew"
    assert promote(tracking_uri=store, customer="demo", version=2).alias == "champion"


@pytest.mark.parametrize(("alter", "message"), DOCTORED_VERDICTS)
def test_a_doctored_verdict_is_refused(
    store: str, make: Make, alter: Callable[[Path, Path], None], message: str
) -> None:
    put(store, make(b"champion"))
    promote(tracking_uri=store, customer="demo", version=1)
    found = put(store, make(b"bad", psnr_db=20.0, needs_approval=True))
    alter(artifact(store, found, "package"), artifact(store, found, "verdict.json"))
    with pytest.raises(GateRefused, match=re.escape(message)):
        promote(tracking_uri=store, customer="demo", version=2)
    assert aliases(store) == {"champion": 1}
    assert versions(store, "demo")[0].promotion == "refused"


def test_a_version_of_another_folder_is_refused(store: str, make: Make, tmp_path: Path) -> None:
    """The run's own folder is fine, but users of the version would get another one."""
    found = put(store, make())
    elsewhere, _ = make(b"never measured")
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    tags = client.get_model_version(found.name, "1").tags
    client.create_model_version(found.name, elsewhere.as_uri(), found.mlflow_run_id, tags=tags)
    with pytest.raises(GateRefused, match=f"with sha256 {found.package_sha256}"):
        promote(tracking_uri=store, customer="demo", version=2)
    assert aliases(store) == {}


def test_a_version_without_a_run_is_refused(store: str, make: Make) -> None:
    put(store, make())
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    client.create_model_version("turbo-vaed-demo", make(b"by hand")[0].as_uri())
    with pytest.raises(GateRefused, match=r"verdict\.json missing"):
        promote(tracking_uri=store, customer="demo", version=2)


def test_register_refuses_a_verdict_of_another_package_or_customer(store: str, make: Make) -> None:
    with pytest.raises(GateRefused, match=f"with sha256 {'f' * 64}"):
        put(store, make(of="f" * 64))
    with pytest.raises(GateRefused, match="'acme', not 'demo'"):
        put(store, make(customer="acme"))
    assert versions(store, "demo") == ()


@pytest.mark.parametrize(
    "alter", [_flip_a_bit, _smuggle_a_file, _cut_the_verdict_short, _say_every_check_passes]
)
def test_register_refuses_an_altered_package_or_verdict(
    store: str, make: Make, alter: Callable[[Path, Path], None]
) -> None:
    made = make(psnr_db=20.0)
    alter(*made)
    with pytest.raises(CorruptFile):
        put(store, made)
    assert versions(store, "demo") == ()
