"""Customers' schedules: their start minutes, what is skipped, and what a real Prefect server makes
of them."""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed, Running

from flows import budget_alarm, schedule
from flows.late import cron_of, why_skipped
from tests import configs
from turbo_vaed.config.schema import ScheduleParams
from turbo_vaed.errors import Unreachable, UserError

NIGHTLY = ScheduleParams(cron="30 2 * * *", timezone="Europe/Berlin", max_late_hours=6)
DUE = datetime(2026, 11, 30, 1, 30, tzinfo=UTC)  # 2:30 in Berlin


def run(due: datetime = DUE, *, auto_scheduled: bool = True) -> FlowRun:
    return FlowRun(
        flow_id=uuid.uuid4(), expected_start_time=due, auto_scheduled=auto_scheduled, name="x"
    )


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,47}", fullmatch=True))
def test_a_customer_has_one_minute_of_its_own(name):
    cron = cron_of(name, ScheduleParams(cron="H 2 * * *"))
    minute, rest = cron.split(maxsplit=1)
    assert 0 <= int(minute) < 60 and rest == "2 * * *"
    assert cron == cron_of(name, ScheduleParams(cron="H 2 * * *"))
    assert cron_of(name, NIGHTLY) == "30 2 * * *"


def test_minutes_are_spread():
    found = Counter(cron_of(f"customer-{i}", ScheduleParams()).split()[0] for i in range(300))
    assert len(found) >= 55 and max(found.values()) <= 15, "5 on average"


@pytest.mark.parametrize(
    ("hours_late", "is_skipped"), [(0.01, False), (5.9, False), (6.1, True), (400, True)]
)
def test_a_run_that_is_too_late_is_skipped(hours_late, is_skipped):
    now = DUE + timedelta(hours=hours_late)
    assert bool(why_skipped(NIGHTLY, run(), "acme", now)) == is_skipped
    assert not why_skipped(NIGHTLY, run(auto_scheduled=False), "acme", now), "somebody asked for it"
    assert not why_skipped(None, run(), "acme", now)


def test_a_run_whose_next_one_is_due_is_skipped():
    hourly = ScheduleParams(cron="30 * * * *", max_late_hours=6)
    assert not why_skipped(hourly, run(), "acme", DUE + timedelta(minutes=59))
    assert "2026-11-30 02:30" in why_skipped(hourly, run(), "acme", DUE + timedelta(minutes=60))


@pytest.mark.parametrize("before_change", [True, False])
def test_a_nights_hours_follow_the_customers_clock(before_change):
    """Berlin's clocks go back on 25 October 2026: the night has 25 hours."""
    patient = ScheduleParams(cron="30 2 * * *", timezone="Europe/Berlin", max_late_hours=100)
    due = datetime(2026, 10, 24, 0, 30, tzinfo=UTC)  # 2:30 in summer
    following = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    if not before_change:
        due, following = following, datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
    assert not why_skipped(patient, run(due), "acme", following - timedelta(minutes=1))
    assert why_skipped(patient, run(due), "acme", following)


@pytest.mark.parametrize("verb", [schedule.rows, lambda: schedule.set_paused("acme", True)])
def test_schedules_need_a_server_that_stays(verb):
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(UserError, match="PREFECT_API_URL"),
    ):
        verb()


def test_a_server_that_does_not_answer_is_unreachable():
    with (
        temporary_settings({
            PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0,
        }),
        pytest.raises(Unreachable, match="PREFECT_API_URL"),
    ):  # fmt: skip
        schedule.rows()


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_server_has_the_schedules_of_params_yaml_and_keeps_what_is_paused(tmp_path):
    document = configs.read()
    demo = document["customers"]["demo"]
    names = [f"c-{i}" for i in range(5)]
    document["customers"] = {
        name: demo | {"schedule": {"cron": "H 2 * * *", "timezone": "Europe/Berlin"}}
        for name in names
    } | {"by-hand": demo}
    settings = SimpleNamespace(
        root=configs.write(tmp_path, document), alarm_webhook=None, alarm_hours=26.0
    )

    def synced():
        return {row.customer: row for row in schedule.sync(settings)}

    assert list(synced()) == names, "a customer without a schedule has none"
    with get_client(sync_client=True) as client:
        first = schedule._deployment(client)
        before = {s.slug: s.id for s in first.schedules}
        synced()
        assert schedule._deployment(client).updated == first.updated, "runs that wait stay"
    schedule.set_paused("c-1", True)
    document["customers"]["c-2"]["schedule"]["cron"] = "7 4 * * *"
    del document["customers"]["c-3"]["schedule"]
    configs.write(tmp_path, document)
    rows = synced()
    assert set(rows) == {"c-0", "c-1", "c-2", "c-4"}
    assert [name for name, row in rows.items() if row.is_paused] == ["c-1"]
    assert rows["c-2"].cron == "7 4 * * *" and rows["c-2"].timezone == "Europe/Berlin"
    with get_client(sync_client=True) as client:
        stored = schedule._deployment(client).schedules
        after = {s.slug: s.id for s in stored}
        parameters = {s.slug: s.parameters for s in stored}
        (also,) = client.read_deployment_by_name("maintenance/all").schedules
        assert also.active
    assert after["c-0"] == before["c-0"], "an unchanged schedule is not made anew"
    assert parameters["c-4"] == {"customer": "c-4"}
    schedule.set_paused("c-1", False)
    assert not any(row.is_paused for row in schedule.rows())
    with get_client(sync_client=True) as client:
        stored = schedule._deployment(client).schedules
        assert {s.slug: s.parameters for s in stored} == parameters, "a pause keeps them"
        client.create_deployment_schedules(
            schedule._deployment(client).id, [(CronSchedule(cron="0 0 * * *"), False)]
        )
    schedule.set_paused("c-4", True)
    document["customers"]["c-0"]["schedule"]["cron"] = "8 4 * * *"
    configs.write(tmp_path, document)
    rows = synced()
    assert set(rows) == {"c-0", "c-1", "c-2", "c-4"}, "with one that somebody made by hand"
    assert [name for name, row in rows.items() if row.is_paused] == ["c-4"]
    schedule.set_paused("c-4", False)
    with pytest.raises(UserError, match="no schedule of by-hand"):
        schedule.set_paused("by-hand", True)
    assert schedule.run_now(settings, "c-0")
    assert all(row.next_at > datetime.now(UTC) for row in schedule.rows())
    with pytest.raises(UserError, match="typo"):
        schedule.run_now(settings, "typo")
    document["customers"]["c-0"]["schedule"]["cron"] = "61 2 * * *"
    configs.write(tmp_path, document)
    with pytest.raises(UserError, match=r"customers\.c-0\.schedule\.cron"):
        schedule.sync(settings)
    document["customers"] = {"by-hand": demo}
    configs.write(tmp_path, document)
    assert synced() == {}


@pytest.fixture
def receiver():
    """A webhook on loopback: its URL, and what it was sent."""
    got = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/hook", got
        found.shutdown()


RUN = "acme-9a575223daa2"


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_each_alarm_reaches_the_webhook_with_what_to_do(tmp_path, receiver):
    url, got = receiver
    document = configs.read()
    document["customers"]["acme"] = document["customers"]["demo"] | {"schedule": {}}
    root = configs.write(tmp_path, document)
    settings = SimpleNamespace(root=root, alarm_webhook=url, alarm_hours=10 / 3600)
    with get_client(sync_client=True) as client:

        def stored():
            found = client.request("POST", "/automations/filter", json={}).json()
            return {one["name"]: (one["id"], one["updated"]) for one in found}

        def run(*states, tags=("acme", RUN)):
            parameters = {"customer": "acme"}
            found = client.create_flow_run_from_deployment(
                deployment, parameters=parameters, tags=tags
            )
            for state in states:
                client.set_flow_run_state(found.id, state, force=True)
            return str(found.id)

        schedule.sync(settings)
        made = stored()
        schedule.sync(settings)
        assert stored() == made and len(made) == 5, "one that is changed forgets open runs"
        deployment = client.read_deployment_by_name(schedule.FULL_NAME).id
        run(Running(), Completed(name="Passed"))
        late = State(type=StateType.SCHEDULED, name="Late")
        refused = Failed(name="Refused", message='no "budget" <left>\n')
        expected = {
            run(refused): ("refused", "Refused", RUN),
            run(Failed(name="GateFailed")): ("failed", "GateFailed", RUN),
            run(Failed(name="Fault"), tags=["acme"]): ("failed", "Fault", ""),
            run(Running()): ("no-end", "Running", RUN),
            run(late, tags=[]): ("no-end", "Late", ""),
        }
        warned = run(Running(), Completed(name="Passed"))
        expected[warned] = ("warn-share", "Passed", RUN)
        budget_alarm.emit(warned, str(deployment), "81 of 100 USD spent")
        found = []
        while len(found) < len(expected):
            sent = got.get(timeout=120)
            found += [sent] if sent["customer"] == "acme" else []  # not of the test before
        assert {one["flow_run"]: [one[k] for k in ("alarm", "state", "run")] for one in found} == {
            flow_run: list(facts) for flow_run, facts in expected.items()
        }
        for one in found:
            assert one["to_do"] and one["to_do"] in one["text"] and "acme" in one["text"]
            assert one["message"] in one["text"]
        messages = {one["alarm"]: one["message"] for one in found}
        assert messages["refused"] == 'no "budget" <left>\n'
        assert messages["warn-share"] == "81 of 100 USD spent"
        settings.alarm_hours = 26.0
        schedule.sync(settings)
        assert {name: id for name, (id, _) in stored().items()} == {
            name: id for name, (id, _) in made.items()
        }, "updated in place"
        assert [n for n, at in stored().items() if at != made[n]] == ["turbo-vaed no-end"]
        settings.alarm_webhook = None
        schedule.sync(settings)
        assert stored() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cron": "every night"}, "schedule.cron"),
        ({"cron": "* * * *"}, "schedule.cron"),
        ({"timezone": "Berlin"}, "tz database"),
        ({"max_late_hours": 0}, "schedule.max_late_hours"),
        ({"crom": "0 2 * * *"}, "cron"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(given, message, tmp_path):
    from turbo_vaed.config import load

    configs.override(configs.copy_to(tmp_path), schedule=given)
    with pytest.raises(UserError, match=message):
        load.load(tmp_path, "demo")
