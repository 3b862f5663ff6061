"""The command line: exit codes, messages without tracebacks, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff
from typer.main import get_command

from tests import configs
from tests.gate import made_up
from turbo_vaed import cli
from turbo_vaed.cli import endpoints, registry
from turbo_vaed.config import load
from turbo_vaed.gate import judge
from turbo_vaed.stages import params
from turbo_vaed.workspace import Workspace

ROOT = Path(__file__).parents[2]
DOCS = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "decisions.md"})
"""Without the diary: what it names may be gone."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of its own: configuration and dvc.yaml, an empty demo folder, the teacher."""
    configs.copy_to(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "assets/teachers", tmp_path / "assets/teachers")
    (tmp_path / "data/demo").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "TURBO_VAED_LEDGER_URL", "TURBO_VAED_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def call(checkout, monkeypatch, capsys):
    """`call(*arguments)` -> (exit code, stdout, stderr); no traceback ever."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["turbo-vaed", *arguments])
        code = cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)


COMMANDS = set(commands(get_command(cli.app)))


def test_an_interrupted_command_says_how_to_resume(call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "load", interrupted)
    code, _, err = call("registry", "list", "demo")
    assert code == 130 and "resume" in err


def test_every_command_answers_help(call):
    assert len(COMMANDS) > 40
    for path in COMMANDS:
        code, out, _ = call(*path, "-h")
        assert code == 0
        assert "Usage" in out
    assert call("--help") == call("-h")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in DOCS)]
)
def test_commands_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for first, second in re.findall(
        r"[`$/ ]turbo-vaed ([a-z][a-z0-9-]*)(?: ([a-z][a-z-]*))?", text
    ):
        assert (first,) in COMMANDS
        is_group = any(path[0] == first for path in COMMANDS if len(path) == 2)
        assert not is_group or not second or (first, second) in COMMANDS


def test_version_is_that_of_pyproject(call):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert call("--version") == (0, f"turbo-vaed {project['version']}\n", "")


def test_customer_add_keeps_comments_and_is_listed(call, checkout, tmp_path):
    videos = tmp_path / "some videos"
    videos.mkdir()
    before = (checkout / "params.yaml").read_text()
    code, out, _ = call(
        "customer", "add", "acme", "--source", str(videos), "--use-case", "inspection"
    )
    assert code == 0
    assert "turbo-vaed poc acme" in out
    after = (checkout / "params.yaml").read_text()
    assert [c for c in before.split("#")[1:] if c.split("\n")[0] not in after] == []
    assert load.load(checkout, "acme").thresholds.min_psnr == 26
    code, out, _ = call("customer", "list", "--format", "json")
    assert [row["customer"] for row in json.loads(out)] == ["demo", "acme"]
    code, _, err = call(
        "customer", "add", "acme", "--source", str(videos), "--use-case", "inspection"
    )
    assert code == 2
    assert "already" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/b", "--source", ".", "--use-case", "education"], "not allowed"),
        (["a b", "--source", ".", "--use-case", "education"], "not allowed"),
        (["acme", "--source", ".", "--use-case", "fun"], "'fun'"),
        (["acme", "--source", "nowhere", "--use-case", "education"], "nowhere"),
        (["acme", "--source", "s3://b/p", "--use-case", "education"], "S3"),
    ],
)
def test_customer_add_refuses(call, checkout, arguments, message):
    before = (checkout / "params.yaml").read_bytes()
    code, _, err = call("customer", "add", *arguments)
    assert code == 2
    assert message in err
    assert (checkout / "params.yaml").read_bytes() == before
    assert [path.name for path in checkout.glob("*.partial")] == []


@pytest.mark.parametrize("name", ["a/b", "a b", "nobody"])
def test_poc_refuses_a_name_that_is_not_a_customer(call, name):
    code, _, err = call("poc", name)
    assert code == 2
    assert name in err


def test_an_unknown_key_in_params_is_refused(call, checkout):
    configs.override(checkout, distill={"stepz": 3})
    code, _, err = call("poc", "demo")
    assert code == 2
    assert "distill.stepz" in err


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_of_zero_or_less_is_refused(call, checkout, budget):
    configs.override(checkout, budget={"run_usd": budget})
    code, _, err = call("poc", "demo")
    assert code == 2
    assert "budget.run_usd" in err


def test_unknown_price_is_refused_before_anything_runs(call, checkout):
    configs.override(checkout, prices={"local_usd_per_hour": None})
    code, _, err = call("poc", "demo")
    assert code == 1
    assert "prices.local_usd_per_hour" in err
    assert not (checkout / "work").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": {"crop": 60}}, "distill.crop is 60"),
        ({"clip": {"frames": 8}}, "clip.frames is 8"),
        ({"distill": {"student": "turbo-vaed-ltx"}}, "128 channels"),
        ({"distill": {"student": "mine"}}, "allowed: "),
        ({"export": {"targets": ["litert/fp64"]}}, "litert/fp64"),
    ],
)
def test_params_that_do_not_fit_are_refused_before_anything_is_paid(
    call, checkout, changes, message
):
    """By a run and by `customer show`."""
    configs.override(checkout, **changes)
    for command in (("poc", "demo"), ("customer", "show", "demo")):
        code, _, err = call(*command)
        assert code == 2
        assert message in err
        assert not (checkout / "work").exists()


def test_a_corrupt_teacher_is_refused_before_anything_is_paid(call, checkout):
    weights = checkout / "assets/teachers/tiny-ltx/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = call("poc", "demo")
    assert code == 3
    assert weights.name in err
    assert not (checkout / "work").exists()


def test_an_unreachable_ray_cluster_ends_a_stage_with_its_address(call, checkout, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    params.run(Workspace.load(checkout, "demo"))
    code, _, err = call("stage", "encode", "demo")
    assert code == 3
    assert "127.0.0.1:1" in err


@pytest.mark.slow
def test_a_quote_before_any_measurement_is_by_arithmetic(call, monkeypatch):
    """AWS does not answer, and is called once for each of its two services."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.0)  # as it tries again
    code, out, _ = call("cost", "quote", "demo")
    assert code == 0
    assert re.search(r"500 steps .*\$\d", out) and "by arithmetic" in " ".join(out.split())
    assert "16 prices are unknown" in out


def test_an_unreachable_mlflow_is_refused_before_anything_runs(call, checkout, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, _, err = call("poc", "demo")
    assert code == 3
    assert "127.0.0.1:9" in err
    assert not (checkout / "work").exists()


def test_a_missing_folder_of_videos_is_refused_with_the_command_to_make_it(call, checkout):
    (checkout / "data/demo").rmdir()
    code, _, err = call("poc", "demo")
    assert code == 2
    assert "make setup" in err


@pytest.mark.parametrize("lost", ["git", "work"])
def test_a_machine_without_git_or_a_writable_work_folder_is_refused(
    call, checkout, monkeypatch, lost
):
    if lost == "git":
        monkeypatch.setenv("PATH", str(checkout))
    else:
        (checkout / "work").symlink_to("/proc")  # where root cannot make files either
    code, _, err = call("poc", "demo")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not (checkout / "state").exists()


def test_empty_folder_is_refused_and_leaves_no_result(call, checkout):
    params.run(Workspace.load(checkout, "demo"))
    code, _, err = call("stage", "validate", "demo")
    assert code == 1
    assert "demo" in err
    assert not (checkout / "work/demo/validate").exists()
    code, out, _ = call("cost", "report", "--customer", "demo", "--format", "json")
    assert code == 0
    ((stage,),) = (run["stages"] for run in json.loads(out)["runs"])
    assert stage["stage"] == "validate"
    assert stage["spent_usd"] == stage["wasted_usd"]  # the stage failed: its seconds bought nothing


def test_a_teacher_outside_the_teachers_folder_is_refused(call, checkout):
    configs.override(checkout, encode={"teacher_weights": "data/demo"})
    code, _, err = call("poc", "demo")
    assert code == 2
    assert "assets/teachers" in err


def test_an_unknown_stage_is_refused(call):
    code, _, err = call("stage", "dance", "demo")
    assert code == 2
    assert "validate" in err


def test_missing_argument_is_a_users_mistake(call):
    assert call("poc")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["gate", "explain"], ["report", "open"]])
def test_before_the_first_run_explain_and_report_name_the_command_to_start_one(call, verb):
    code, _, err = call(*verb, "demo")
    assert code == 2
    assert "turbo-vaed poc demo" in err


@pytest.fixture
def explained(checkout: Path) -> Path:
    """The folder of a customer's run whose package was judged too slow."""
    work, given = checkout / "work" / "demo", Workspace.load(checkout, "demo").params
    verdict = judge(
        made_up.evidence(latency_seconds=0.5, teacher_latency_seconds=0.2), customer="demo",
        use_case="education", thresholds=given.thresholds, min_parity_psnr=80.0,
        package_sha256="a" * 64, data_sha256="b" * 64, git_revision="c" * 40,
        created="2026-11-27T10:00:00+00:00", target="executorch-xnnpack/fp32",
    )  # fmt: skip
    documents: dict[str, Any] = {
        "gate/verdict.json": verdict.to_json(),
        "gate/choice.json": {
            "chosen": "executorch-xnnpack/fp32",
            "candidates": [
                {"name": "executorch-xnnpack/fp32", "result": "fails", "not_passed": ["fps"]},
                {"name": "onnx/fp32", "result": "fails", "not_passed": ["fps", "psnr"]},
            ],
        },
        "export/figures.json": {"executorch-xnnpack/fp32 sha256": "a" * 64},
        "distill/history.json": {
            "steps_done": 500,
            "steps": [{"step": s, "val_psnr": p} for s, p in ((1, 20.0), (250, 28.0), (500, 29.0))],
        },
        "run.json": {"run_id": "demo-1", "started": "2026-11-27T09:00:00+00:00", "status": "done"},
    }
    for name, document in documents.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(json.dumps(document))
    return work


def explain(call) -> tuple[int, dict[str, Any]]:
    """The exit code and the document of `gate explain demo --format json`."""
    code, out, _ = call("gate", "explain", "demo", "--format", "json")
    return code, json.loads(out)


def test_gate_explain_prints_failed_checks_and_advice(call, explained):
    """By the customer, and by the id of its last run."""
    for name in ("demo", "demo-1"):
        code, out, err = call("gate", "explain", name)
        printed = " ".join(out.split())
        assert code == 1 and "2 of 13" in err
        assert "95% interval" in printed and "margin" in printed and "-1.5" in printed
        assert "2.5 times too slow" in printed and "tiny-ltx" in printed
        assert "onnx/fp32 fails (fps, psnr)" in printed
        assert "outdated" not in printed
    code, found = explain(call)
    assert code == 1 and set(found["advice"]) == {"fps", "latency_ratio"}
    assert (found["outdated"], found["checks"][-1]["margin"]) == ("", -1.5)
    assert call("gate", "explain", "demo-7")[0] == 2


def test_gate_explain_marks_a_verdict_older_than_the_last_run(call, explained):
    run = {"run_id": "demo-2", "started": "2026-11-27T11:00:00+00:00", "status": "open"}
    (explained / "run.json").write_text(json.dumps(run))
    _, out, _ = call("gate", "explain", "demo-2")
    assert re.search("outdated: .*demo-2", " ".join(out.split()))
    run |= {"started": "2026-11-27T09:30:00+00:00"}
    (explained / "run.json").write_text(json.dumps(run))
    assert "outdated" not in call("gate", "explain", "demo")[1], "it measures again"
    (explained / "export" / "figures.json").write_text('{"executorch-xnnpack/fp32 sha256": "9"}')
    assert "exported again" in explain(call)[1]["outdated"]


def test_gate_explain_marks_a_verdict_under_other_limits_as_outdated(call, checkout, explained):
    configs.override(checkout, thresholds={"min_psnr": 31.5})
    printed = " ".join(call("gate", "explain", "demo")[1].split())
    assert re.search(r"outdated: .*: psnr 31\.5\. turbo-vaed poc demo ", printed)
    (explained / "gate" / "verdict.json").write_text(
        (explained / "gate" / "verdict.json").read_text().replace('"host"', '"a-phone"')
    )
    configs.copy_to(checkout)
    assert re.search(r"gate\.device .*host.*a-phone", explain(call)[1]["outdated"])
    configs.override(checkout, use_case="inspection")
    assert "inspection" in explain(call)[1]["outdated"]


def test_outside_a_checkout_the_error_names_turbo_vaed_root(call, monkeypatch, tmp_path_factory):
    monkeypatch.delenv("TURBO_VAED_ROOT")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    code, _, err = call("customer", "list")
    assert code == 2
    assert "TURBO_VAED_ROOT" in err


@pytest.mark.slow
def test_doctor_names_what_is_missing_and_how_to_get_it(call):
    code, out, _ = call("doctor", "--format", "json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert rows["torch"]["state"] == "ok"
    assert rows["ledger"]["state"] == rows["mlflow"]["state"] == "ok"
    embedded = {rows[what]["state"] for what in ("MLflow's store", "Ray cluster", "checkpoints")}
    assert embedded == {"ok"}
    assert rows["checkout"]["state"] == "ok"
    videos = rows["demo videos"]
    assert (videos["state"], videos["to_do"]) == ("missing", "make setup")
    assert "data/demo" in videos["found"]
    assert rows["LiteRT converter"]["found"] == "litert-torch 0.10.0"
    assert code == 3


def test_doctor_names_a_checkout_in_which_no_run_can_begin(call, checkout, monkeypatch):
    monkeypatch.setitem(endpoints.CHECKS, "MLflow's store", lambda _: "")  # takes seconds
    (checkout / "work").symlink_to("/proc")  # where root cannot make files either
    rows = {row["what"]: row for row in json.loads(call("doctor", "--format", "json")[1])}
    assert rows["checkout"]["state"] == "missing"
    assert str(checkout / "work") in rows["checkout"]["to_do"]


def test_the_first_reason_and_the_number_of_others_are_printed() -> None:
    """A reason has semicolons of its own."""
    first = registry._first("fps: not measured: busy; stop it\nflicker\nsize")
    assert first.startswith("fps: not measured: busy; stop it;")
    assert "2 more" in first and "--format json" in first and "flicker" not in first
    assert registry._first("passes") == "passes"
    assert registry._first("") == ""
