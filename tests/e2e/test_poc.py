"""Whole runs through the command line on a checkout of their own: Prefect, DVC, Ray, MLflow.

The teacher is the demo's, the videos are made on the spot, and everything is tiny. One checkout
serves all tests in order, as a person would use it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checkout import TINY, flow_runs, make, override, prefect_server, turbo_vaed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with the customer `tiny`, whose videos are four, one of them a text file."""
    return make(tmp_path_factory.mktemp("checkout"))


def charges(checkout: Path, unit: str = "%") -> list[tuple[str, str]]:
    query = "select run, stage from charges where unit like ? order by started_at"
    with sqlite3.connect(checkout / "state/ledger.db") as ledger:
        return ledger.execute(query, (unit,)).fetchall()


@pytest.fixture(scope="module")
def first_run(checkout):
    added = turbo_vaed(
        checkout, "customer", "add", "tiny", "--source", "videos", "--use-case", "education"
    )
    assert added.returncode == 0, added.stderr
    override(checkout, **TINY)
    return turbo_vaed(checkout, "poc", "tiny")


def test_a_run_ends_with_a_judged_registered_package_and_a_report(checkout, first_run):
    assert first_run.returncode == 0, first_run.stdout[-3000:] + first_run.stderr[-3000:]
    work = checkout / "work/tiny"
    assert "of the teacher's PSNR" in first_run.stdout
    verdict = json.loads((work / "gate/verdict.json").read_text())
    assert verdict["result"] == "passes"
    package = json.loads((work / "gate/package/package.json").read_text())
    page = (work / "report/report.html").read_text()
    for words in ("notes.mp4", "champion", verdict["package_sha256"], "by time"):
        assert words in page, words
    assert package["files"]
    history = json.loads((work / "distill/history.json").read_text())
    assert history["stopped"] == "finished"
    assert history["workers"] == 2
    assert len(history["steps"]) == 4
    listed = turbo_vaed(checkout, "registry", "list", "tiny", "--format", "json")
    (version,) = json.loads(listed.stdout)
    assert version["aliases"] == "champion"
    stages = {stage for _, stage in charges(checkout)}
    assert stages == {"validate", "clip", "encode", "distill", "evaluate", "export", "gate"}
    assert list((checkout / "state/dvc-remote").rglob("*.dir"))  # pushed
    for noise in ("core_worker", "Traceback", "prefect.client", "ERROR"):
        assert noise not in first_run.stderr, first_run.stderr[-3000:]
    assert not list(work.glob(".*.partial"))
    left = sorted(p.name for p in (work / "checkpoints").iterdir())
    assert left[0].startswith("distill-") and left[1:] == ["progress.jsonl", "samples"]
    assert len(list((work / "checkpoints" / left[0]).glob("*.pt"))) == 1, "of the last step"
    status = turbo_vaed(checkout, "distill", "status", "tiny", "--format", "json")
    assert json.loads(status.stdout)["state"] == "finished"


def published(checkout: Path) -> dict[str, Any]:
    """The customer's last run, as the site has it."""
    path = checkout / "state/site/records/tiny.last.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_run_is_on_the_fleets_page(checkout, first_run):
    last, site = published(checkout), checkout / "state/site"
    assert last["outcome"] == "Passed" and last["began"] < last["ended"]
    assert (site / last["report"]).read_bytes() == (
        checkout / "work/tiny/report/report.html"
    ).read_bytes()
    assert last["report"] in (site / "index.html").read_text()
    assert last["run"] in (site / "customers/tiny/costs.html").read_text()
    champion = json.loads((site / "records/tiny.champion.json").read_text())
    assert champion["version"] == 1
    rows = json.loads(turbo_vaed(checkout, "fleet", "--format", "json").stdout)
    (row,) = (row for row in rows if row["customer"] == "tiny")
    assert (row["outcome"], row["alarms"]) == ("Passed", [])


def test_a_second_run_computes_and_charges_nothing(checkout, first_run):
    before = charges(checkout)
    lock = (checkout / "customers/tiny/dvc.lock").read_bytes()
    again = turbo_vaed(checkout, "poc", "tiny")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Starting temporary server" not in again.stderr
    assert "Nothing has changed" in again.stdout
    assert charges(checkout) == before
    assert (checkout / "customers/tiny/dvc.lock").read_bytes() == lock
    assert "Running stage" not in again.stdout
    last = published(checkout)
    assert (last["outcome"], last["result"]) == ("Unchanged", "passes")
    listed = turbo_vaed(checkout, "registry", "list", "tiny", "--format", "json")
    assert len(json.loads(listed.stdout)) == 1


def test_a_fresh_checkout_on_the_same_servers_finds_nothing_changed(
    checkout, first_run, tmp_path_factory
):
    fresh = tmp_path_factory.mktemp("fresh")
    own = shutil.ignore_patterns("work", "state", "customers", "cache", "config.local")
    shutil.copytree(checkout, fresh, ignore=own, dirs_exist_ok=True)
    config = fresh / ".dvc/config"
    remote = f"url = {checkout}/state/dvc-remote"
    config.write_text(config.read_text().replace("url = ../state/dvc-remote", remote))
    assert remote in config.read_text()
    before = charges(checkout)
    servers = {"TURBO_VAED_LEDGER_URL": "ledger.db", "MLFLOW_TRACKING_URI": "mlflow.db"}
    given = {name: f"sqlite:///{checkout}/state/{file}" for name, file in servers.items()}
    again = turbo_vaed(fresh, "poc", "tiny", **given)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Nothing has changed" in again.stdout
    assert charges(checkout) == before
    verdict = "work/tiny/gate/verdict.json"
    assert (fresh / verdict).read_bytes() == (checkout / verdict).read_bytes()
    assert not (fresh / "work/tiny/clip").exists(), "nothing reads it"


@pytest.fixture(scope="module")
def team(checkout, first_run):
    """The environment of the runs below, as a team has it: a Prefect server that stays, where the
    first run starts its own."""
    with prefect_server(checkout) as found:
        yield found


def test_a_budget_too_small_stops_distillation_and_the_rest_still_runs(checkout, team):
    encoded = (checkout / "work/tiny/encode/latents.json").stat().st_mtime_ns
    one = {"targets": ["onnx/fp32"]}  # lowered in seconds
    # Another student, for the first one is trained; the reserve, and a second and a half: the
    # workers take longer to start.
    other = TINY["distill"] | {"seed": 12}
    override(checkout, budget={"run_usd": 0.0067}, use_case="critical", export=one, distill=other)
    short = turbo_vaed(checkout, "poc", "tiny", **team, TURBO_VAED_LOGS="json")
    assert short.returncode == 0, short.stdout[-3000:] + short.stderr[-3000:]
    logged = [json.loads(line) for line in (short.stdout + short.stderr).splitlines()]
    assert {one["customer"] for one in logged if one["logger"] == "prefect.task_runs"} == {"tiny"}
    assert any(one["message"].startswith("distill: ") for one in logged), "by the stage itself"
    work = checkout / "work/tiny"
    history = json.loads((work / "distill/history.json").read_text())
    assert history["stopped"] == "budget"
    assert history["steps_done"] < 4
    assert 'id="stopped-early"' in (work / "report/report.html").read_text()
    assert (work / "encode/latents.json").stat().st_mtime_ns == encoded  # not run again
    runs = list(dict.fromkeys(run for run, _ in charges(checkout)))
    assert len(runs) == 2
    # `critical` needs a person's approval: whatever was measured, it is no champion.
    versions = json.loads(
        turbo_vaed(checkout, "registry", "list", "tiny", "--format", "json").stdout
    )
    flow_run = flow_runs(team["PREFECT_API_URL"])[0]
    assert (flow_run["state_name"], flow_run["state_type"]) == ("Passed", "COMPLETED")
    assert set(flow_run["tags"]) == {"tiny", runs[-1]}
    assert versions[0]["aliases"] == "candidate"
    assert versions[0]["reasons"]
    assert versions[1]["aliases"] == "champion"


def test_a_refused_run_leaves_the_page_of_the_last_one(checkout, team):
    page = checkout / "work/tiny/report/report.html"
    before, refusal = page.read_bytes(), page.with_name("not-started.html")
    month = {"run_usd": 94, "customer_month_usd": 0.000001}  # used up by the runs before
    override(checkout, budget=month)
    refused = turbo_vaed(checkout, "poc", "tiny", **team)
    assert refused.returncode == 1, refused.stdout[-3000:] + refused.stderr[-3000:]
    (message,) = [line for line in refused.stderr.splitlines() if line.startswith("refused: ")]
    assert "customer_month_usd" in message
    assert refused.stderr.count(message.removeprefix("refused: ")) == 1, "printed once"
    assert f"report: {refusal}" in refused.stderr
    refused_page = refusal.read_text()
    last, site = published(checkout), checkout / "state/site"
    assert last["outcome"] == "Refused" and "customer_month_usd" in last["sentence"]
    assert (site / last["page"]).read_text() == refused_page
    assert (site / last["report"]).read_bytes() == before
    assert "budget.customer_month_usd" in refused_page
    assert page.read_bytes() == before
    flow_run = flow_runs(team["PREFECT_API_URL"])[0]
    assert (flow_run["state_name"], flow_run["state_type"]) == ("Refused", "FAILED")
    assert "customer_month_usd" in flow_run["state"]["message"]


def test_a_teacher_that_does_not_fit_its_config_is_refused_before_anything_is_paid(checkout, team):
    """Its widths are other ones than its weights': what it computes cannot be estimated."""
    override(checkout, budget={"run_usd": 95})  # a test before this one left next to nothing
    before = charges(checkout, "node-second")
    config = checkout / "assets/teachers/tiny-ltx/config.json"
    whole = config.read_text()
    config.write_text(json.dumps(json.loads(whole) | {"block_out_channels": [48, 64, 64]}))
    try:
        failed = turbo_vaed(checkout, "poc", "tiny", **team)
    finally:
        config.write_text(whole)
    assert failed.returncode == 3
    assert "corrupt: " in failed.stderr and "AutoencoderKLLTXVideo" in failed.stderr
    page = (checkout / "work/tiny/report/not-started.html").read_text()
    assert "AutoencoderKLLTXVideo" in page
    assert charges(checkout, "node-second") == before, "but for the disk, no second of any stage"


def test_a_failing_stage_leaves_its_own_error_and_a_report(checkout, team):
    """A file where `encode` makes its folder: it fails, and is tried once more."""
    override(checkout, encode=TINY["encode"] | {"batch_size": 1})
    obstacle = checkout / "work/tiny/.encode.partial"
    obstacle.touch()
    unused = {"RAY_ADDRESS": "127.0.0.1:1", "TURBO_VAED_OWN_RAY": "127.0.0.1:1"}  # it joins none
    failed = turbo_vaed(checkout, "poc", "tiny", **team, **unused)
    obstacle.unlink()
    assert failed.returncode == 3
    outcome = json.loads((checkout / "work/tiny/outcome/encode.json").read_text())
    assert (outcome["error"], outcome["exit_code"]) == ("Fault", 3)
    assert str(obstacle) in outcome["message"]
    account = f"encode: {outcome['message']}"
    assert f"\nfault: {account}" in failed.stderr
    assert failed.stderr.count(account) == 2, "once for the retry, once at the end"
    assert failed.stdout.count("> turbo-vaed stage encode") == 2
    page = (checkout / "work/tiny/report/report.html").read_text()
    assert not (checkout / "work/tiny/report/not-started.html").exists()
    assert 'data-stage="encode"' in page
    assert str(obstacle) in page


def test_too_little_data_is_refused_with_names(checkout, team):
    shutil.rmtree(checkout / "videos")
    (checkout / "videos").mkdir()
    (checkout / "videos/empty.mp4").touch()
    refused = turbo_vaed(checkout, "poc", "tiny", **team)
    assert refused.returncode == 1
    assert "empty.mp4" in refused.stderr
    assert "empty.mp4" in (checkout / "work/tiny/report/report.html").read_text()
    assert not (checkout / "work/tiny/validate").exists()
