"""The configuration of earlier versions: it loads, or says what to write instead.

tests/data/earlier/one-file is version 0.1.0's, where params.yaml held everything; four-files is of
the day on which it was split. Neither is edited when the schema changes: that is the point.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from turbo_vaed.config import load
from turbo_vaed.config.migrate import migrate
from turbo_vaed.config.past_keys import REMOVED, RENAMED
from turbo_vaed.config.sections import sections
from turbo_vaed.errors import UserError

EARLIER = Path(__file__).parents[1] / "data/earlier"


@pytest.fixture
def four_files(tmp_path: Path) -> Path:
    for path in (EARLIER / "four-files").iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_files_of_one_version_back_load(four_files: Path) -> None:
    files = load.read(four_files)
    for name in files.customers:
        assert sections(load.resolve(files, name).params())["distill"]
    for name in files.profiles:
        load.profile(files, name)


def test_the_one_file_of_0_1_0_loads_once_it_is_migrated(tmp_path: Path) -> None:
    source = EARLIER / "one-file/params.yaml"
    shutil.copy(source, tmp_path)
    with pytest.raises(UserError, match="config migrate"):
        load.read(tmp_path)
    for name, text in migrate(source).items():
        (tmp_path / name).write_text(text)
    before = yaml.safe_load(source.read_text())
    params = load.load(tmp_path, "demo")
    assert params.distill.steps == before["defaults"]["distill"]["steps"]
    limit = before["defaults"]["gate"]["max_others_share"]
    assert params.gate.max_background_cpu_share == limit


@pytest.mark.parametrize("key", [*RENAMED, *REMOVED])
def test_a_key_of_the_past_is_refused_with_what_to_write(four_files: Path, key: str) -> None:
    section = "export" if key == "target" else "gate"
    path = four_files / "params.yaml"
    document = yaml.safe_load(path.read_text())
    document["customers"]["demo"][section] = {key: 1}
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError) as raised:
        load.load(four_files, "demo")
    expected = {
        "max_others_share": "max_background_cpu_share", "because": "rationale",
        "warmup": "gate.max_warmup", "samples": "gate.min_samples",
        "min_parity_psnr": "export.min_parity_db", "target": "export.targets",
    }  # fmt: skip
    assert expected[key] in str(raised.value)
    assert f"customers.demo.{section}.{key}" in str(raised.value)
