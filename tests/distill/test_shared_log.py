"""The event log beside the checkpoints: what another checkout knows of a run, and what it costs the
training to leave it there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distill.event_log import T0, Books, lines, make_recorder, start, steps
from tests.drills.faults import FlakyS3
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.distill import shared_log as module
from turbo_vaed.distill.checkpoints import Store
from turbo_vaed.distill.shared_log import COPY, fetch_log, shared_log
from turbo_vaed.errors import Busy, CorruptFile, Unreachable

SAVED = {"event": "checkpoint", "step": 40, "at": T0 + 51, "seconds": 0.5, "name": "x", "bytes": 9}


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a customer's checkpoints may be."""
    if request.param == "folder":
        return str(tmp_path / "shared" / "acme")
    found: str = request.getfixturevalue("s3_url")
    return found


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here/checkpoints/progress.jsonl"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there/checkpoints/progress.jsonl"


def write(path: Path, *moments: float) -> bytes:
    """A log of made-up events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"event": "step", "at": {at}}}\n' for at in moments))
    return path.read_bytes()


def eventually(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < give_up, "it takes too long"
        time.sleep(0.01)


def copy_at(url: str) -> bytes:
    try:
        return Store(url).get(COPY)
    except FileNotFoundError:
        return b""


def test_a_run_that_is_resumed_in_another_checkout_knows_what_came_before(
    url: str, here: Path, there: Path
) -> None:
    """What was wasted between its last checkpoint and its stop is booked there."""
    with (
        pytest.raises(KeyboardInterrupt),
        shared_log(here, url, token=1) as copy_soon,
        make_recorder(here, RunContext(), on_checkpoint=copy_soon) as recorder,
    ):
        for event in [start(10), *steps(1, 47, at=11), SAVED]:
            recorder.on_event(event)
        raise KeyboardInterrupt
    books = Books()
    with (
        shared_log(there, url, token=2) as copy_soon,
        make_recorder(there, books.run_context(), on_checkpoint=copy_soon) as recorder,
    ):
        assert (recorder.run.step, recorder.run.checkpoint_times) == (47, {40: T0 + 51})
        recorder.on_event(start(100, resumed_from=40))
    ((began, _, reason),) = books.wasted
    assert began == pytest.approx(50) and reason.startswith("driver restarted at step 47")
    assert [e["step"] for e in lines(there, "step")] == [*range(1, 48)]
    with shared_log(here, url, token=3):
        assert here.read_bytes() == there.read_bytes(), "and the first one knows of the second"


def test_a_checkpoint_is_in_the_copy_soon_after_it_was_written(url: str, here: Path) -> None:
    with (
        shared_log(here, url, token=1) as copy_soon,
        make_recorder(here, RunContext(), on_checkpoint=copy_soon) as recorder,
    ):
        for event in [start(10), *steps(1, 3, at=11)]:
            recorder.on_event(event)
        assert copy_at(url) == b"", "not with every step"
        recorder.on_event(SAVED)
        eventually(lambda: copy_at(url) == here.read_bytes())


def test_without_a_checkpoint_it_is_copied_from_time_to_time(
    url: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.01)
    with shared_log(here, url, token=1):
        for moments in ((1.0,), (1.0, 2.0)):
            log = write(here, *moments)
            here.write_bytes(log + b'{"event": "st')  # a line is being written
            eventually(lambda log=log: copy_at(url) == log)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("known", "copied", "is_taken"),
    [((), (1.0,), True), ((1.0,), (1.0, 2.0), True), ((1.0, 3.0), (1.0, 2.0), False),
     ((1.0, 2.0, 3.0), (4.0,), True), ((1.0,), (), False),
     ((1.0, 300.0), (1.0, 300.0, 110.0), True), ((1.0, 300.0, 110.0), (1.0, 300.0), False)],
)  # fmt: skip
def test_the_newer_log_counts(
    url: str, here: Path, known: tuple[float], copied: tuple[float], is_taken: bool
) -> None:
    """Not the longer one: a new student starts the log over. But a log that goes on from the other
    one is the newer, though its machine's clock is behind."""
    if copied:
        Store(url).put(COPY, write(here, *copied))
        here.unlink()
    before = write(here, *known) if known else b""
    assert fetch_log(here, Store(url)) is is_taken
    assert (here.read_bytes() if here.is_file() else b"") == (copy_at(url) if is_taken else before)


def test_a_run_that_another_one_replaced_leaves_no_log(
    url: str, here: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shared_log(here, url, token=3) as copy_soon:
        with shared_log(there, url, token=4):
            log = write(there, 2.0)
        write(here, 1.0, 3.0)
        for _ in range(3):
            copy_soon()
            time.sleep(0.05)
    assert copy_at(url) == log
    assert capsys.readouterr().out.count("other checkouts do not see the end") == 1
    with pytest.raises(Busy), shared_log(here, url, token=3):
        pytest.fail("it may not begin either")


def test_the_last_copy_is_tried_again(
    url: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put, failures = Store.put, iter([OSError("a moment"), Unreachable("and another")])

    def fail_twice(store: Store, name: str, data: bytes) -> None:
        if failure := next(failures, None):
            raise failure
        put(store, name, data)

    monkeypatch.setattr(Store, "put", fail_twice)
    with shared_log(here, url, token=1):
        log = write(here, 1.0)
    assert copy_at(url) == log
    assert "do not see" not in capsys.readouterr().out


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_storage_that_is_slow_stalls_nothing(
    tmp_path: Path,
    here: Path,
    is_stopped: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    until = threading.Event()
    monkeypatch.setattr(Store, "put", lambda *_: until.wait(60))
    monkeypatch.setattr(module, "_LAST_SECONDS_AFTER_ERROR" if is_stopped else "_LAST_SECONDS", 0.1)
    began = time.monotonic()
    try:
        with shared_log(here, str(tmp_path / "shared"), token=1) as copy_soon:
            write(here, 1.0)
            for _ in range(100):
                copy_soon()
            if is_stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert is_stopped
    finally:
        seconds = time.monotonic() - began
        until.set()
    assert seconds < 10
    assert capsys.readouterr().out.count("takes too long") == 1


@pytest.mark.slow
def test_a_storage_that_is_down_is_reported_once_and_gets_the_log_later(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FlakyS3.started("checkpoints") as s3:
        url = "s3://checkpoints/acme"
        with shared_log(here, url, token=1) as copy_soon:
            write(here, 1.0)
            s3.is_down = True
            for tries in (1, 2):
                refused = s3.refused
                copy_soon()
                eventually(lambda refused=refused: s3.refused > refused)  # type: ignore[misc]
                time.sleep(0.1 * tries)
            s3.is_down = False
            log = write(here, 1.0, 2.0)
        assert copy_at(url) == log
        printed = capsys.readouterr().out
        assert printed.count("do not see its newest steps yet") == 1 and "the end" not in printed
        s3.is_down = True
        with pytest.raises(Unreachable):
            fetch_log(here, Store(url), patience_seconds=0)
        assert here.read_bytes() == log


def test_a_damaged_copy_is_passed_over_and_replaced(
    url: str, here: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(url).put(COPY, b"no event\n")
    log = write(here, 1.0)
    with shared_log(here, url, token=1):
        assert here.read_bytes() == log
    assert f"{url}/{COPY}, line 1" in capsys.readouterr().out
    assert copy_at(url) == log


def test_a_damaged_log_replaces_no_copy(url: str, here: Path) -> None:
    log = write(here, 1.0)
    Store(url).put(COPY, log)
    here.write_bytes(b"no event\n")
    with pytest.raises(CorruptFile), shared_log(here, url, token=1):
        pytest.fail("it is not read any further")
    assert copy_at(url) == log


def test_where_checkpoints_have_no_storage_of_their_own_nothing_is_copied(here: Path) -> None:
    with shared_log(here, None, token=1) as copy_soon:
        write(here, 1.0)
        copy_soon()
    assert [*here.parent.iterdir()] == [here]
