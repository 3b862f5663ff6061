"""Checks that Prefect, ledger, MLflow, DVC's remote and the site have all of every run, for
bench/runs_at_once.py."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import requests
import sqlalchemy as sa
import yaml

from scripts.team.layout import BUCKET, USER, Layout
from tests.e2e import checkout
from turbo_vaed.config.stages import IDLE_STAGE, STAGES
from turbo_vaed.costs import Charge, Ledger, total_usd
from turbo_vaed.costs.db.schema import RESERVATIONS
from turbo_vaed.costs.meter import UNIT
from turbo_vaed.costs.money import format_usd
from turbo_vaed.costs.open_runs import OpenRuns
from turbo_vaed.registry import promotion
from turbo_vaed.registry.client import open_tracking

STEPS = 2
"""Of the training."""
ENDS = {"Passed": 0, "GateFailed": 1}
"""State of the flow -> exit code of the command."""


@dataclass(frozen=True, kw_only=True)
class Customer:
    """One with a run."""

    name: str
    root: Path
    """Of its checkout."""
    outcome: str
    """Of its run."""

    @property
    def work(self) -> Path:
        return self.root / "work" / self.name

    @property
    def run(self) -> str:
        """The id of its run."""
        return str(json.loads((self.work / "run.json").read_text())["run_id"])


def run(command: Sequence[str], root: Path, given: Mapping[str, str]) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(
        command, cwd=root, env=checkout.environment(root, **given), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def check_prefect(layout: Layout, customers: Sequence[Customer]) -> dict[str, dict[str, Any]]:
    """Every customer has one flow run, in the state of its outcome; its stages by customer."""
    login = (USER, layout.secrets["prefect_api"])

    def asked(path: str, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            body = {**wanted, "limit": 200, "offset": len(found)}
            answer = requests.post(
                f"{layout.url('prefect')}/api/{path}/filter", json=body, auth=login, timeout=60
            )
            answer.raise_for_status()
            found += answer.json()
            if len(answer.json()) < 200:
                return found

    flows = asked("flow_runs", {"flows": {"name": {"any_": ["poc"]}}})
    by_name = {one["name"]: one for one in flows}
    assert len(flows) == len(by_name) == len(customers), Counter(one["name"] for one in flows)
    stages = {}
    for customer in customers:
        flow = by_name[f"poc-{customer.name}"]
        kind = "COMPLETED" if customer.outcome == "Passed" else "FAILED"
        state = flow["state_name"], flow["state_type"]
        assert state == (customer.outcome, kind), (customer.name, state)
        assert {customer.name, customer.run} <= set(flow["tags"]), flow["tags"]
        tasks = asked("task_runs", {"flow_runs": {"id": {"any_": [flow["id"]]}}})
        of_stages = [one for one in tasks if one["name"].split("-")[0] in STAGES]
        stages[customer.name] = {one["name"].split("-")[0]: one for one in of_stages}
        assert len(of_stages) == len(STAGES), [one["name"] for one in tasks]
        assert {one["state_type"] for one in tasks} == {"COMPLETED"}, customer.name
        assert {one["run_count"] for one in tasks} == {1}, f"{customer.name}: tried again"
    return stages


def check_ledger(
    layout: Layout, customers: Sequence[Customer], tasks: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All charges of every run are there once and add up to what its report says; nothing is
    reserved, nothing waits, no run is open."""
    url = layout.database("ledger", "ledger")
    with Ledger.open(url) as ledger:
        charges = ledger.charges()
        totals = {one.run: ledger.total(run=one.run) for one in customers}
    assert len({charge.key for charge in charges}) == len(charges)
    runs = {(charge.customer, charge.run) for charge in charges}
    assert runs == {(one.name, one.run) for one in customers}, "of whom charges are"
    for customer in customers:
        own = [charge for charge in charges if charge.run == customer.run]
        usd = total_usd(charge.amount_usd for charge in own)
        record = json.loads(
            (customer.root.parent / f"site/{page_of(customer)}/run.json").read_text()
        )
        assert Decimal(record["usd"]) == usd == totals[customer.run], (customer.name, usd, record)
        assert format_usd(usd) in (customer.work / "report/report.html").read_text()
        assert {charge.useful for charge in own} == {"useful"}, customer.name
        for stage in STAGES:
            check_slices(
                [c for c in own if c.stage == stage and c.unit == UNIT], tasks[customer.name][stage]
            )
        for path in (customer.root / "state/due").glob("*"):
            raise AssertionError(f"{path}: charges that the ledger has not taken")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        reserved = connection.execute(sa.select(sa.func.count()).select_from(RESERVATIONS))
        assert reserved.scalar_one() == 0, "reservations are left"
    engine.dispose()
    with OpenRuns.open(url) as open_runs:
        states = {row.customer: (row.state, row.run) for row in open_runs.all()}
    assert states == {one.name: ("ended", one.run) for one in customers}, states
    idle = [charge for charge in charges if charge.stage == IDLE_STAGE]
    return {
        "charges": len(charges),
        "charges_of_idle_nodes": len(idle),
        "usd": str(total_usd(charge.amount_usd for charge in charges)),
    }


def check_slices(slices: Sequence[Charge], task: Mapping[str, Any]) -> None:
    """A stage's charges are of one node, meet to the microsecond, and lie within its task."""
    ordered = sorted(slices, key=lambda charge: charge.started_at)
    assert ordered, f"{task['name']} cost nothing"
    for one, following in pairwise(ordered):
        assert one.ended_at == following.started_at, f"a gap in {one} before {following}"
    began, ended = ordered[0].started_at, ordered[-1].ended_at
    seconds = Decimal((ended - began) // timedelta(microseconds=1)).scaleb(-6)
    assert sum(charge.quantity for charge in ordered) == seconds, task["name"]
    ran = [datetime.fromisoformat(task[name]) for name in ("start_time", "end_time")]
    assert ran[0] <= began < ended <= ran[1], (task["name"], ran, began, ended)


def page_of(customer: Customer) -> str:
    """The folder of the customer's run on the site."""
    return f"customers/{customer.name}/runs/{customer.run}"


def check_mlflow(layout: Layout, customers: Sequence[Customer]) -> dict[str, Any]:
    """Every customer has one version, whose bytes are those that its gate measured, and a finished
    run with metrics and artifacts; nothing is still running."""
    uri = layout.url("mlflow")
    client, digests, all_runs = open_tracking(uri), set(), 0
    for customer in customers:
        experiment = client.get_experiment_by_name(f"turbo-vaed/{customer.name}")
        assert experiment is not None, customer.name
        found = client.search_runs([experiment.experiment_id])
        all_runs += len(found)
        assert {one.info.status for one in found} == {"FINISHED"}, customer.name
        (registered,) = [
            one for one in found if one.data.tags.get("turbo_vaed_run_id") == customer.run
        ]
        assert {"spent_usd", "student_parameters"} < registered.data.metrics.keys()
        assert "distill.steps" in registered.data.params
        run_id = registered.info.run_id
        held = {file.path for file in client.list_artifacts(run_id)}
        assert {"package", "verdict.json", "dvc.lock", "evaluation.json"} <= held, held
        lock = customer.root / "customers" / customer.name / "dvc.lock"
        sha256 = hashlib.sha256(lock.read_bytes()).hexdigest()
        assert registered.data.tags["dvc_lock_sha256"] == sha256, f"{lock} has changed since"
        (live,) = [one for one in found if one.data.tags.get("kind") == "distill"]
        curve = client.get_metric_history(live.info.run_id, "val_psnr")
        assert [point.step for point in curve] == list(range(1, STEPS + 1)), customer.name
        (row,) = promotion.versions(uri, customer.name)
        alias = "champion" if customer.outcome == "Passed" else "candidate"
        assert (row.version, row.aliases) == (1, (alias,)), row
        verdict = json.loads((customer.work / "gate/verdict.json").read_text())
        assert row.package_sha256 == verdict["package_sha256"], customer.name
        digests.add(row.package_sha256)
        (audited,) = promotion.audit(uri, customer.name)
        assert not audited.wrong, (customer.name, audited.wrong)
    assert len(digests) == len(customers), "two customers have the same package"
    models = client.search_registered_models(max_results=1000)
    assert len(models) == len(customers), [model.name for model in models]
    return {"mlflow_runs": all_runs, "versions": len(digests)}


def check_dvc(
    layout: Layout, customers: Sequence[Customer], environment: Mapping[str, str], scratch: Path
) -> dict[str, Any]:
    """Nothing has changed for DVC; its remote has, byte by byte, all that every lock names; the
    ledger's copy of each lock is the same; and a fresh checkout pulls the first customer's."""
    for root in {one.root for one in customers}:
        targets = [
            f"customers/{one.name}/dvc.yaml:{stage}"
            for one in customers
            if one.root == root
            for stage in STAGES
        ]
        printed = run(
            [sys.executable, "-m", "dvc", "status", "--json", *targets], root, environment
        )
        assert json.loads(printed.strip().splitlines()[-1]) == {}, printed
    s3 = boto3.client("s3")  # as the environment says

    def digest_of(key: str) -> tuple[str, bytes]:
        content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return hashlib.md5(content).hexdigest(), content

    objects = 0
    with OpenRuns.open(layout.database("ledger", "ledger")) as open_runs:
        for customer in customers:
            path = customer.root / "customers" / customer.name / "dvc.lock"
            state = open_runs.state_of(customer.name)
            assert state is not None and state.files["dvc.lock"] == path.read_text("utf-8")
            lock = yaml.safe_load(path.read_text(encoding="utf-8"))
            assert set(lock["stages"]) == set(STAGES), lock["stages"].keys()
            own = (f"work/{customer.name}/", f"videos/{customer.name}")
            wanted: set[str] = set()
            for made in lock["stages"].values():
                for one in (*made.get("deps", []), *made["outs"]):
                    assert one["path"].startswith(own), (customer.name, one["path"])
                wanted |= {out["md5"] for out in made["outs"] if out.get("md5")}
            prefix = f"dvc/{customer.name}/files/md5"
            for md5 in sorted(wanted):
                if not md5.endswith(".dir"):
                    continue
                found, content = digest_of(f"{prefix}/{md5[:2]}/{md5[2:]}")
                assert f"{found}.dir" == md5, (customer.name, md5)
                wanted |= {entry["md5"] for entry in json.loads(content)}
            for md5 in sorted(one for one in wanted if not one.endswith(".dir")):
                assert digest_of(f"{prefix}/{md5[:2]}/{md5[2:]}")[0] == md5, (customer.name, md5)
            objects += len(wanted)
    first, fresh = customers[0], scratch / "fresh"
    run(["git", "clone", "--quiet", str(first.root), str(fresh)], scratch, {})
    run(checkout.command("customer", "fetch", first.name), fresh, environment)
    for stage in STAGES:
        there, here = (tree(root / "work" / first.name / stage) for root in (first.root, fresh))
        assert there and there == here, f"{stage} of {first.name} in a fresh checkout"
    return {"dvc_objects": objects}


def tree(folder: Path) -> dict[str, str]:
    """The files of a folder and their digests."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_site(customers: Sequence[Customer], site: Path) -> None:
    """The fleet's page and that of all costs have every run: of those that ended at once, none was
    lost."""
    index, costs = ((site / name).read_text() for name in ("index.html", "costs.html"))
    for customer in customers:
        last = json.loads((site / f"records/{customer.name}.last.json").read_text())
        assert (last["outcome"], last["run"]) == (customer.outcome, customer.run), last
        assert last["report"] in index, f"{customer.name} is not on the fleet's page"
        assert customer.run in costs, f"{customer.run} is not on the page of all costs"
        report = (customer.work / "report/report.html").read_bytes()
        assert (site / last["report"]).read_bytes() == report, customer.name
