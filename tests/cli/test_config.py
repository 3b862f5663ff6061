"""`turbo-vaed config …`: origins of values, schemas for editors, the way from the old layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from tests import configs
from turbo_vaed.cli import app
from turbo_vaed.config import load
from turbo_vaed.config.json_schema import schemas
from turbo_vaed.config.migrate import migrate
from turbo_vaed.errors import UserError

REPOSITORY = Path(__file__).parents[2]
OLD = """\
# The team's own words.
defaults:
  use_case: education          # of whom?

  budget:
    run_usd: 12                # not more
  # Power and depreciation.
  prices:
    local_usd_per_hour: 0.5

  gate:
    max_others_share: 0.5      # a busy machine

  # What it returns.
  roi:
    devices: {likely: 6000}

devices:                       # where packages are measured
  host:
    kind: host
  # phone:
  #   kind: adb

# The policy.
use_cases:
  education:
    min_psnr: 22               # dB
    because:
      min_psnr: faces look smeared below it

customers:
  demo:
    source: data/demo
    thresholds: {because: {min_psnr: ours}}
  acme: {source: x, gate: {max_others_share: 0.4}, thresholds: {because: {min_psnr: theirs}}}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    configs.copy_to(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    return tmp_path


def rows(*arguments: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(app, ["config", "show", *arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    return {row["key"]: row for row in json.loads(result.stdout)}


def test_every_value_is_printed_with_its_origin(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBO_VAED_LEDGER_URL", "postgresql://me:secret@host/ledger")
    configs.override(root, distill={"steps": 7})
    found = rows("demo")
    assert found["distill.steps"] | {"key": 0} == {
        "key": 0, "value": 7, "from": "params.yaml:8 customers.demo.distill.steps",
    }  # fmt: skip
    assert found["distill.seed"]["from"] == load.BUILT_IN
    assert found["thresholds.min_psnr"]["from"].startswith("policy.yaml:")
    ledger = found["environment.ledger_url"]
    assert ledger["from"] == "environment TURBO_VAED_LEDGER_URL"
    assert "secret" not in ledger["value"] and "host/ledger" in ledger["value"]
    assert found["environment.ray_address"]["value"] is None


def test_schemas_take_the_shipped_files_and_refuse_an_unknown_key(root: Path) -> None:
    assert CliRunner().invoke(app, ["config", "schema"]).exit_code == 0
    for name in load.FILES:
        schema = json.loads((root / "schemas" / Path(name).with_suffix(".json")).read_text())
        Draft202012Validator.check_schema(schema)
        check = Draft202012Validator(schema).is_valid
        for folder in (REPOSITORY, configs.FOLDER):
            document = yaml.safe_load((folder / name).read_text())
            assert check(document), next(Draft202012Validator(schema).iter_errors(document))
        assert not check({**document, "colour": 1})


def test_a_schema_takes_part_of_a_section_and_describes_its_keys() -> None:
    params = schemas()["params.yaml"]
    check = Draft202012Validator(params).is_valid
    one = {"source": "x", "roi": {"devices": {"likely": 1}}, "thresholds": {"min_psnr": 30}}
    assert check({"customers": {"acme": one}})
    assert not check({"customers": {"acme": {"roi": {}}}}), "no source"
    assert not check({"customers": {"acme": one | {"distill": {"stepz": 1}}}})
    assert not check({"defaults": {"budget": {}}}), "it is in finance.yaml"
    assert "At most" in params["$defs"]["DistillParams"]["properties"]["workers"]["description"]


def test_an_old_file_is_split_with_its_comments(root: Path, tmp_path: Path) -> None:
    (root / "params.yaml").write_text(OLD)
    with pytest.raises(UserError, match="config migrate"):
        load.read(root)
    refused = CliRunner().invoke(app, ["config", "migrate"])
    assert isinstance(refused.exception, UserError) and "--force" in str(refused.exception)
    assert (root / "params.yaml").read_text() == OLD
    assert CliRunner().invoke(app, ["config", "migrate", "--force"]).exit_code == 0
    texts = {name: (root / name).read_text() for name in load.FILES}
    for line in OLD.splitlines():
        for comment in line.split("#")[1:]:
            assert any(comment in text for text in texts.values()), comment
    files = load.read(root)
    assert load.team_gate(files).max_background_cpu_share == 0.5
    assert files.use_cases["education"]["rationale"] == {"min_psnr": "faces look smeared below it"}
    assert files.customers["demo"]["thresholds"] == {"rationale": {"min_psnr": "ours"}}
    assert files.customers["acme"] == {
        "source": "x",
        "gate": {"max_background_cpu_share": 0.4},
        "thresholds": {"rationale": {"min_psnr": "theirs"}},
    }
    assert files.finance.document == {
        "budget": {"run_usd": 12},
        "prices": {"local_usd_per_hour": 0.5},
        "roi": {"devices": {"likely": 6000}},
    }
    assert "  # phone:\n" in texts["devices.yaml"] and "# The policy." in texts["policy.yaml"]
    assert migrate(root / "params.yaml") == {}, "once is enough"


def test_a_file_that_cannot_be_split_is_left_as_it_is(root: Path) -> None:
    for text in (
        "defaults: {budget: {run_usd: 1}, distill: {steps: 1}}\ncustomers: {}\n",
        "defaults:\n  clip: &one {frames: 9}\n  roi: {devices: *one}\n",
    ):
        (root / "params.yaml").write_text(text)
        with pytest.raises(UserError, match=r"params\.yaml .*split"):
            migrate(root / "params.yaml")
        assert (root / "params.yaml").read_text() == text
