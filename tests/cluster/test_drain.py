"""The node watcher and a metadata service on loopback; Ray's part is drilled (`make drills`)."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from turbo_vaed.cluster import drain as node
from turbo_vaed.cluster import metadata
from turbo_vaed.cluster.drain import Watcher
from turbo_vaed.cluster.metadata import Metadata, Notice
from turbo_vaed.errors import Unreachable, UserError

SPOT = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TOKEN = "/latest/api/token"
INTERRUPTED = json.dumps({"action": "terminate", "time": "2026-11-22T10:02:00Z"})
RECOMMENDED = json.dumps({"noticeTime": "2026-11-22T10:00:00Z"})


class Service:
    """Answers with `answers` (path to status and text), to requests with one of its `tokens`."""

    def __init__(self):
        self.answers, self.tokens, self.requested = {}, set(), []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status, text):
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self):
                if TOKEN in service.answers:
                    self.answer(*service.answers[TOKEN])
                elif self.path == TOKEN and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
                    service.tokens.add(token := f"token-{len(service.tokens)}")
                    self.answer(200, token)
                else:
                    self.answer(400, "")

            def do_GET(self):
                service.requested.append(self.path)
                if self.headers["X-aws-ec2-metadata-token"] not in service.tokens:
                    self.answer(401, "")
                else:
                    self.answer(*service.answers.get(self.path, (404, "")))

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service():
    service = Service()
    yield service
    service.stop()


@pytest.fixture
def drained():
    return []


@pytest.fixture
def printed():
    return []


class Asked:
    """The machines that were asked for in place of this one; `answer` is whether they joined."""

    def __init__(self):
        self.answer, self.count, self.cancelled = True, 0, 0

    def __call__(self):
        self.count += 1
        return self

    def has_joined(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def cancel(self):
        self.cancelled += 1


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
def watcher(service, drained, asked, printed):
    return Watcher(
        Metadata(service.url), drained.append, asked, printed.append, rebalance_seconds=600
    )


def test_without_a_notice_nothing_is_drained(watcher, service, drained, printed):
    watcher.poll()
    assert service.requested == [SPOT, REBALANCE]
    assert (drained, printed) == ([], [])


def test_an_interruption_drains_once(watcher, service, drained, printed):
    watcher.poll()
    service.answers[SPOT] = (200, INTERRUPTED)
    for _ in range(2):
        watcher.poll()
    (notice,) = drained
    assert notice.kind == "interruption"
    assert notice.deadline == datetime(2026, 11, 22, 10, 2, tzinfo=UTC)
    (text,) = printed
    assert re.search("terminate .*10:02:00 UTC.*is drained", text)


def test_a_machine_that_missed_a_notice_drains_at_the_next(watcher, service, drained):
    service.answers[SPOT] = (200, INTERRUPTED)
    watcher.poll()
    later = {"action": "hibernate", "time": "2026-11-23T10:02:00Z"}
    service.answers[SPOT] = (200, json.dumps(later))
    watcher.poll()
    assert [notice.deadline.day for notice in drained] == [22, 23]


def test_a_rebalance_recommendation_drains_once_with_its_own_deadline(watcher, service, drained):
    service.answers[REBALANCE] = (200, RECOMMENDED)
    start = datetime.now(UTC)
    for _ in range(3):
        watcher.poll()
    (notice,) = drained
    ended, leave = datetime.now(UTC), timedelta(seconds=600)
    assert notice.kind == "rebalance"
    assert start + leave <= notice.deadline <= ended + leave


def test_a_rebalance_recommendation_drains_when_its_replacement_has_joined(
    watcher, service, drained, asked, printed
):
    service.answers[REBALANCE] = (200, RECOMMENDED)
    asked.answer = False
    for _ in range(3):
        watcher.poll()
    assert (asked.count, drained) == (1, []) and len(printed) == 1
    asked.answer = True
    watcher.poll()
    assert [notice.kind for notice in drained] == ["rebalance"] and asked.cancelled == 1
    watcher.poll()
    assert asked.count == len(drained) == 1


def test_an_interruption_does_not_wait_for_the_replacement(watcher, service, drained, asked):
    service.answers[REBALANCE] = (200, RECOMMENDED)
    asked.answer = False
    watcher.poll()
    service.answers[SPOT] = (200, INTERRUPTED)
    watcher.poll()
    assert [notice.kind for notice in drained] == ["interruption"] and asked.cancelled == 1


def test_a_replacement_that_nobody_asks_for_any_more_is_asked_for_anew(
    watcher, service, drained, asked, printed
):
    service.answers[REBALANCE] = (200, RECOMMENDED)
    asked.answer = Unreachable("Ray is gone")
    watcher.poll()
    assert drained == [] and "Ray is gone" in printed[-1]
    asked.answer = True
    watcher.poll()
    assert asked.count == 2 and len(drained) == 1


def test_an_interruption_after_a_recommendation_drains_again_with_its_deadline(
    watcher, service, drained
):
    service.answers[REBALANCE] = (200, RECOMMENDED)
    watcher.poll()
    service.answers[SPOT] = (200, INTERRUPTED)
    for _ in range(2):
        watcher.poll()
    assert [notice.kind for notice in drained] == ["rebalance", "interruption"]


def test_a_recommendation_after_an_interruption_is_ignored(watcher, service, drained):
    service.answers[SPOT] = (200, INTERRUPTED)
    watcher.poll()
    service.answers[REBALANCE] = (200, RECOMMENDED)
    watcher.poll()
    assert [notice.kind for notice in drained] == ["interruption"]


def test_an_expired_token_is_renewed(watcher, service, drained, printed):
    watcher.poll()
    service.tokens = {"another's", "and another's"}
    service.answers[SPOT] = (200, INTERRUPTED)
    watcher.poll()
    assert len(drained) == 1 and len(printed) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        "",
        "[]",
        "{}",
        "null",
        '{"action": "stop", "time": "soon"}',
        '{"action": "stop", "time": 3}',
        '{"action": "stop", "time": "2026-11-22T10:02:00"}',
    ],
)
def test_an_invalid_notice_is_reported_once_and_survived(watcher, service, drained, printed, text):
    service.answers = {SPOT: (200, text), REBALANCE: (200, "garbage")}
    for _ in range(2):
        watcher.poll()
    assert not drained
    assert len(printed) == 2 and "spot/instance-action" in printed[0]  # once for each
    service.answers[SPOT] = (200, INTERRUPTED)
    watcher.poll()
    assert len(drained) == 1


def test_an_error_of_the_metadata_service_is_reported_once_and_survived(
    watcher, service, drained, printed
):
    service.answers[SPOT] = (500, "")
    for _ in range(2):
        watcher.poll()
    assert len(printed) == 1 and "500" in printed[0]
    service.answers[REBALANCE] = (200, RECOMMENDED)  # the other notice is heard meanwhile
    watcher.poll()
    assert [notice.kind for notice in drained] == ["rebalance"]
    service.answers[SPOT] = (404, "")
    watcher.poll()
    service.answers[SPOT] = (500, "")
    watcher.poll()
    assert len([text for text in printed if "500" in text]) == 2  # trouble anew is news


def test_a_metadata_service_that_goes_away_is_reported_once_and_survived(watcher, service, printed):
    service.answers[TOKEN] = (503, "")
    watcher.poll()
    service.stop()
    for _ in range(3):
        watcher.poll()
    assert ["503 Server" in text for text in printed] == [
        True,
        True,
        False,
        False,
    ]  # once for each path
    assert "Connection" in printed[-1]


def test_a_drain_that_fails_is_tried_again(service, printed):
    failures = [Unreachable("no Ray here"), Unreachable("no Ray here")]

    def drain(notice):
        if failures:
            raise failures.pop()

    watcher = Watcher(Metadata(service.url), drain, Asked(), printed.append, rebalance_seconds=600)
    service.answers[SPOT] = (200, INTERRUPTED)
    for _ in range(4):
        watcher.poll()
    assert len(printed) == 2
    assert "NOT drained: no Ray" in printed[0] and "is drained" in printed[1]


def test_proxies_are_not_used_for_the_metadata_service(watcher, service, drained, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    service.answers[SPOT] = (200, INTERRUPTED)
    watcher.poll()
    assert len(drained) == 1


def test_a_missing_metadata_service_is_refused(service):
    Metadata(service.url).check()
    service.answers[TOKEN] = (500, "")
    Metadata(service.url).check()  # there is one: trouble passes
    service.answers[TOKEN] = (403, "")
    with pytest.raises(Unreachable, match=r"answers 403.*switched off"):
        Metadata(service.url).check()
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9\b"):
        Metadata("http://127.0.0.1:9").check()


def test_ray_accepts_the_drain_command(monkeypatch):
    from ray.scripts.scripts import drain_node

    ran = []
    monkeypatch.setattr(node, "find_node", lambda node_id: node_id or "ab" * 28)
    monkeypatch.setattr(node, "_ray", ran.append)
    for seconds in (1000, -1000):
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        node.drain(Notice(kind="interruption", text="EC2 -- says", deadline=deadline))
    assert ran[0][:3] == ["-m", "ray.scripts.scripts", "drain-node"]
    early, late = (drain_node.make_context("drain-node", list(args[3:])).params for args in ran)
    assert early["node_id"] == "ab" * 28
    assert early["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert early["reason_message"] == "EC2 -- says"
    assert 900 < early["deadline_remaining_seconds"] < 1000
    assert late["deadline_remaining_seconds"] == 0


def test_the_output_of_ray_is_in_the_error(monkeypatch):
    with pytest.raises(Unreachable, match=r"no node x; .*RAY_ADDRESS"):
        node._ray(["-c", "import sys; sys.exit('no node x')"])
    assert node._ray(["-c", "print('noise'); print('abc')"]).splitlines()[-1] == "abc"
    monkeypatch.setattr(node, "_RAY_SECONDS", 0.1)
    with pytest.raises(Unreachable, match=r"0\.1 s"):
        node._ray(["-c", "import time; time.sleep(60)"])


class Enough(Exception):
    """Ends the watch."""


def test_the_watch_goes_on_without_ray(service, monkeypatch, capsys):
    def no_ray(node_id):
        raise Unreachable("no answer")

    polls = iter([None, None])

    def sleep(seconds):
        assert seconds == 7
        service.answers[SPOT] = (200, INTERRUPTED)
        if next(polls, "over"):
            raise Enough

    monkeypatch.setattr(node, "find_node", no_ray)
    monkeypatch.setattr(node.time, "sleep", sleep)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url + "/")
    with pytest.raises(Enough):
        node.watch(poll_seconds=7)
    lines = capsys.readouterr().out.splitlines()
    assert "watching" in lines[0] and "no answer" in lines[0]
    assert "NOT drained: no answer" in lines[1] and len(lines) == 2


def test_labels_come_from_the_metadata_service(service, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    machine = {
        "instance-type": "g6.xlarge",
        "instance-life-cycle": "spot",
        "placement/region": "eu-central-1",
        "placement/availability-zone": "eu-central-1b",
    }
    service.answers |= {f"/latest/meta-data/{path}": (200, text) for path, text in machine.items()}
    assert metadata.labels() == (
        "turbo-vaed.io/instance-type=g6.xlarge,ray.io/market-type=spot,"
        "ray.io/availability-region=eu-central-1,ray.io/availability-zone=eu-central-1b"
    )
    service.answers["/latest/meta-data/instance-type"] = (404, "")
    with pytest.raises(Unreachable, match="lacks instance-type"):
        metadata.labels()
    service.answers["/latest/meta-data/instance-type"] = (500, "")
    with pytest.raises(Unreachable, match="instance metadata: 500"):
        metadata.labels()


def test_the_metadata_endpoint_is_that_of_all_aws_clients(monkeypatch):
    from turbo_vaed.settings import metadata_endpoint

    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", raising=False)
    monkeypatch.setenv("TURBO_VAED_MACHINE", "no label")  # of another command
    assert metadata_endpoint() == "http://169.254.169.254"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "127.0.0.1:80")
    with pytest.raises(UserError, match="AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        metadata_endpoint()
