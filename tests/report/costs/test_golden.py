"""The reports of the made-up ledger against their golden files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.costs import golden

NAMES = sorted(path.name for path in golden.FOLDER.iterdir())


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return golden.documents(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", NAMES)
def test_a_report_is_as_its_golden_file(name: str, documents: dict[str, str]) -> None:
    if found := golden.difference(name, golden.read(golden.FOLDER / name), documents[name]):
        pytest.fail(f"{found}\nIf this is meant, renew the files with: make golden", pytrace=False)


def test_every_report_has_its_golden_file(documents: dict[str, str]) -> None:
    assert sorted(documents) == NAMES


def test_a_report_depends_on_its_ledger_alone(documents: dict[str, str], tmp_path: Path) -> None:
    assert golden.documents(tmp_path) == documents
