"""What the driver does with a run's events: log, bar, metrics, and what restarts wasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distill.event_log import (
    END,
    T0,
    Books,
    Clock,
    lines,
    make_recorder,
    start,
    step,
    steps,
)
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.distill.events import INTERRUPTED, LOST, read_progress
from turbo_vaed.distill.progress import headline
from turbo_vaed.errors import CorruptFile


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("turbo_vaed.distill.progress.time.time", clock.time)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "progress.jsonl"


def test_a_lost_worker_costs_the_time_since_its_checkpoint(path, clock, capsys) -> None:
    books = Books()
    with make_recorder(path, books.run_context()) as recorder:
        for event in [start(10), *steps(1, 47, at=11), start(62.3, resumed_from=40)]:
            recorder.on_event(event)
        assert recorder.run.step == 40
        for event in [*steps(41, 60, at=63), {**END, "step": 60, "at": T0 + 83}]:
            recorder.on_event(event)
    ((start_at, end_at, reason),) = books.wasted
    assert (start_at, end_at) == pytest.approx((50, 62.3), abs=1e-5)
    assert reason.startswith(f"{LOST} at step 47")
    printed = capsys.readouterr().out
    for figure in (reason, "7 steps", "12.3 s", "$0.00123"):
        assert figure in printed
    assert recorder.summary()["restarts"] == [
        {"step": 47, "lost_steps": 7, "seconds": 12.3, "usd": "0.00123", "reason": LOST}
    ]


def test_before_the_first_checkpoint_everything_is_lost(path, clock) -> None:
    books = Books()
    with make_recorder(path, books.run_context()) as recorder:
        for event in [start(10), *steps(1, 5, at=11), start(40)]:
            recorder.on_event(event)
    assert books.wasted[0][:2] == pytest.approx((10, 40), abs=1e-5)
    assert recorder.summary()["restarts"][0]["lost_steps"] == 5


def test_a_second_restart_from_the_same_checkpoint_pays_for_its_own_time_only(path, clock) -> None:
    books = Books()
    with make_recorder(path, books.run_context()) as recorder:
        for event in [start(0), *steps(1, 47, at=1), start(60, 40), *steps(41, 45, at=61),
                      start(80, 40), *steps(41, 43, at=81), start(100, 20)]:  # fmt: skip
            recorder.on_event(event)
    found = [wasted[:2] for wasted in books.wasted]
    # The last one falls back to step 20: what came after it and is not booked yet.
    wanted = [(40, 60), (60, 80), (20, 40), (80, 100)]
    assert [pytest.approx(pair, abs=1e-5) for pair in wanted] == found
    assert [row["lost_steps"] for row in recorder.summary()["restarts"]] == [7, 5, 23]


def test_events_after_the_checkpoint_resumed_from_are_dropped(path, clock) -> None:
    def events(number: int) -> list[dict[str, Any]]:
        return [
            {"event": "warning", "step": number, "at": T0 + number, "kind": "flicker", "text": "x"},
            step(number, number, val_psnr=30.0 + number),
            {"event": "checkpoint", "seconds": 0.5, "step": number, "at": T0 + number, "name": "x"},
        ]

    with make_recorder(path, RunContext()) as recorder:
        for event in [start(0), *events(1), *events(2), *events(3), start(30, 2)]:
            recorder.on_event(event)
    run = recorder.run
    assert [known.step for known in run.validations] == list(run.checkpoint_times) == [1, 2]
    assert [known["step"] for known in recorder.summary()["warnings"]] == [1, 2]


@pytest.mark.parametrize(
    ("between", "world", "reason"),
    [
        ([], 1, LOST),
        ([], 3, "from 2 to 3"),
        ([{"event": "interruption", "step": 5, "at": T0 + 6, "deadline_seconds": 118.0,
           "ranks": [1]}], 1, INTERRUPTED),
    ],
)  # fmt: skip
def test_a_restart_has_its_reason(path, clock, between, world, reason) -> None:
    with make_recorder(path, RunContext()) as recorder:
        for event in [start(0), *steps(1, 5, at=1), *between, start(30, 5, world=world)]:
            recorder.on_event(event)
        recorder.on_event(start(50, 5, world=1))
    first, second = recorder.summary()["restarts"]
    assert reason in first["reason"]
    assert (first["lost_steps"], first["seconds"]) == (0, 25.0)
    assert second["reason"] == LOST  # the notice was for the one before


def killed(path: Path, books: Books, clock: Clock, events: list[dict[str, Any]]) -> None:
    """A driver that is gone with the last event: nothing of it runs after that."""
    recorder = make_recorder(path, books.run_context()).__enter__()
    for event in events:
        recorder.on_event(event)
        clock.now = event["at"]


def test_a_new_driver_books_the_waste_of_the_one_before_exactly_once(path, clock) -> None:
    books = Books()
    killed(path, books, clock, [start(10), *steps(1, 47, at=11)])
    with path.open("ab") as file:
        file.write(b'{"event": "step", "st')  # cut short
    clock.now = T0 + 500
    killed(path, books, clock, [start(530, resumed_from=40)])
    # Step 40 was reached at 50, the last sign came at 57; 500 to 530 it took to start again.
    wanted = [(50, 57), (500, 530)]
    assert [pytest.approx(pair, abs=1e-5) for pair in wanted] == [w[:2] for w in books.wasted]
    assert "step 47" in books.wasted[0][2]
    clock.now = T0 + 900
    killed(path, books, clock, [start(910, resumed_from=40), *steps(41, 42, at=911)])
    assert [w[:2] for w in books.wasted[2:]] == [pytest.approx((900, 910), abs=1e-5)]
    with make_recorder(path, books.run_context()) as recorder:
        assert [row["lost_steps"] for row in recorder.summary()["restarts"]] == [7, 0]
    assert len(books.wasted) == 3


def test_waste_that_the_ledger_refused_is_booked_by_the_next_driver(path, clock, capsys) -> None:
    books = Books(is_down=True)
    killed(path, books, clock, [start(0), *steps(1, 5, at=1), start(20, 3), *steps(4, 9, at=21)])
    assert capsys.readouterr().out.count("not in the ledger") == 1
    books.is_down = False
    clock.now = T0 + 100
    killed(path, books, clock, [start(110, 9)])
    assert books.wasted[0][:2] == pytest.approx((3, 20), abs=1e-5)
    assert len(lines(path, "wasted")) == 2


def test_another_job_abandons_the_run_before(path, clock) -> None:
    books = Books()
    killed(path, books, clock, [start(10), *steps(1, 5, at=11)])
    clock.now = T0 + 100
    with make_recorder(path, books.run_context(), job="distill-b") as recorder:
        recorder.on_event(start(120))
        for event in steps(1, 3, at=121):
            recorder.on_event(event)
    ((start_at, end_at, reason),) = books.wasted
    assert (start_at, end_at) == pytest.approx((10, 15), abs=1e-5)
    assert reason.startswith("abandoned ") and "step 5" in reason
    assert recorder.run.step == 3


def test_a_run_after_a_finished_one_starts_over_and_wastes_nothing(path, clock) -> None:
    books = Books()
    events = [start(0), step(1, 1), {"event": "picture", "step": 1, "at": T0 + 1, "png": b"x",
              "caption": "c"}, {**END, "step": 1, "at": T0 + 2}]  # fmt: skip
    killed(path, books, clock, events)
    clock.now = T0 + 50
    with make_recorder(path, books.run_context()) as recorder:
        assert recorder.run.ended is not None  # nothing to do: still the finished one
        recorder.on_event(start(60))
        assert [event["event"] for event in lines(path)] == ["open", "start"]
    assert not (path.parent / "samples").exists()
    assert books.wasted == [] and recorder.summary()["restarts"] == []


@pytest.mark.parametrize("stopped", ["budget", "good enough"])
def test_a_stopped_run_resumes_without_waste(path, clock, stopped) -> None:
    books = Books()
    killed(path, books, clock, [start(0), *steps(1, 5, at=1),
                                {**END, "stopped": stopped, "step": 5, "at": T0 + 6}])  # fmt: skip
    clock.now = T0 + 100
    with make_recorder(path, books.run_context()) as recorder:
        recorder.on_event(start(110, resumed_from=5))
        recorder.on_event(step(6, 111))
    assert books.wasted == [] and recorder.run.step == 6
    assert recorder.run.ended is None


def test_figures_and_pictures_reach_the_tracker(path, clock) -> None:
    books = Books()
    with make_recorder(path, books.run_context()) as recorder:
        recorder.on_event(start(0))
        recorder.on_event(step(1, 1, val_psnr=30.0, val_ssim=0.9, loss=float("nan")))
        recorder.on_event({"event": "picture", "step": 1, "at": T0 + 1, "png": b"\x89PNG",
                        "caption": "source, student"})  # fmt: skip
        recorder.on_event(step(2, 2, val_psnr=30.2))
    (first, values), (second, priced) = books.metrics
    assert (first, second) == (1, 2)
    assert values == {"loss_source": 0.03, "val_psnr": 30.0, "val_ssim": 0.9, "step_seconds": 1.0,
                      "learning_rate": 1e-3, "spent_usd": 0.0001, "workers": 2.0}  # fmt: skip
    assert priced["usd_per_tenth_db"] == pytest.approx(0.00005)
    assert books.pictures == [(b"\x89PNG", "step-000001.png")]
    (picture,) = lines(path, "picture")
    assert "png" not in picture
    assert (path.parent / picture["file"]).read_bytes() == b"\x89PNG"


def test_workers_may_go_on_for_longer_than_any_recent_step_took(path, clock) -> None:
    """A validation and a save between two steps count; what a step took long ago does not."""
    with make_recorder(path, Books().run_context()) as recorder:
        recorder.on_event(start(0))
        assert recorder.horizon_seconds == 600, "nothing is known yet"
        for event in steps(1, 50, at=100):
            recorder.on_event(event)
        assert recorder.horizon_seconds == 60
        recorder.on_event(step(51, 250))  # 101 s after the one before
        assert recorder.horizon_seconds == 202
        for event in steps(52, 250, at=251):
            recorder.on_event(event)
        assert recorder.horizon_seconds == 60
    with make_recorder(path, Books().run_context()) as recorder:
        assert recorder.horizon_seconds == 600
        recorder.on_event(start(1_000_000, resumed_from=250))
        for event in steps(251, 252, at=1_000_100):
            recorder.on_event(event)
        assert recorder.horizon_seconds == 60, "the days in which no driver ran are no step"


def test_without_a_run_context_everything_is_logged(path, clock) -> None:
    with make_recorder(path, RunContext()) as recorder:
        for event in [start(0), *steps(1, 3, at=1), start(9, 2)]:
            recorder.on_event(event)
    assert recorder.summary()["restarts"][0]["lost_steps"] == 1
    assert not lines(path, "wasted")  # the next driver may have a ledger


def test_a_failure_is_written_to_the_event_log(path, clock) -> None:
    with pytest.raises(RuntimeError), make_recorder(path, RunContext()) as recorder:
        recorder.on_event(start(0))
        raise RuntimeError("workers failed")
    assert lines(path)[-1]["text"] == "workers failed"


@pytest.mark.parametrize(("saved", "kind"), [(True, "end"), (False, "failed")])
def test_an_interrupted_training_is_no_failure_once_it_has_saved(path, clock, saved, kind) -> None:
    end = {"event": "end", "step": 0, "at": T0, "stopped": "interrupted", "reason": "Ctrl-C"}
    with pytest.raises(KeyboardInterrupt), make_recorder(path, RunContext()) as recorder:
        recorder.on_event(start(0))
        if saved:
            recorder.on_event(end)
        raise KeyboardInterrupt
    assert lines(path)[-1]["event"] == kind


def test_a_full_disk_delays_events_and_loses_none(path, clock, capsys, monkeypatch) -> None:
    real = Path.open
    with make_recorder(path, RunContext()) as recorder:
        recorder.on_event(start(0))

        def full(self: Path, *arguments: Any, **options: Any) -> Any:
            if self != path:
                return real(self, *arguments, **options)
            with real(self, "ab") as file:
                file.write(b'{"event": "st')  # what still had room
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "open", full)
        recorder.on_event(step(1, 1))
        recorder.on_event(step(2, 2))
        monkeypatch.setattr(Path, "open", real)
        recorder.on_event(step(3, 3))
    assert [event["step"] for event in lines(path, "step")] == [1, 2, 3]
    assert capsys.readouterr().out.count("No space left") == 1


def test_a_checkpoint_that_fails_is_an_error_until_one_is_written(path, clock, capsys) -> None:
    fails = {"event": "checkpoint_failed", "step": 1, "at": T0 + 2, "text": "S3 answers 500"}
    with make_recorder(path, RunContext()) as recorder:
        for event in [start(0), step(1, 1), fails, fails]:
            recorder.on_event(event)
        assert recorder.run.checkpoint_error == "S3 answers 500"
        recorder.on_event(
            {"event": "checkpoint", "seconds": 0.5, "step": 1, "at": T0 + 3, "name": "x"}
        )
        assert recorder.run.checkpoint_error == ""
        recorder.on_event(fails)
    assert capsys.readouterr().out.count("S3 answers 500") == 2


def test_a_file_that_is_no_event_log_is_refused(path, clock) -> None:
    path.parent.mkdir()
    path.write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(CorruptFile, match=r"progress\.jsonl, line 1"):
        make_recorder(path, RunContext())


def test_the_headline_of_a_run_in_progress(path, clock, capsys) -> None:
    with make_recorder(path, RunContext(), steps=500) as recorder:
        recorder.on_event(start(0))
        for n in range(1, 121):
            more = {"val_psnr": 31.0 + n / 600} if n % 40 == 0 else {}
            recorder.on_event(step(n, n, **more))
        assert headline(recorder.run) == (
            "loss 0.0312  val 31.20 dB  $0.012 spent  $0.006 per 0.1 dB  6:20 left  2 workers"
        )
        recorder.on_event(step(500, 900))
        recorder.on_event({"event": "warning", "step": 500, "at": T0 + 901, "kind": "flicker",
                        "text": "every 4 frames"})  # fmt: skip
    out = capsys.readouterr().out
    assert "distill: step 500/500  loss 0.0312" in out
    assert "step 500, flicker: every 4 frames" in out
    summary = recorder.summary()
    assert summary["warnings"] == [{"step": 500, "kind": "flicker", "text": "every 4 frames"}]
    assert [summary[key] for key in ("workers", "device", "precision", "compiled")] == [
        2, "cpu", "fp32", False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stopped", "kept"), [("budget", 9.0), ("good enough", 9.0), ("diverged", 1.0)]
)
def test_no_charge_of_a_diverged_run_stays_useful(path, clock, stopped, kept) -> None:
    """Its checkpoints are removed: what they were paid for is wasted."""
    moments: list[float] = []
    run_context = RunContext(mark_useful_until=lambda until: moments.append(until.timestamp() - T0))
    with make_recorder(path, run_context) as recorder:
        for event in (
            start(1),
            *steps(1, 5, at=5),
            {"event": "checkpoint", "seconds": 0.5, "step": 5, "at": T0 + 9.5},
            {**END, "step": 5, "at": T0 + 10, "stopped": stopped},
            {"event": "checkpoint", "seconds": 0.5, "step": 5, "at": T0 + 11},
        ):
            recorder.on_event(event)
    assert moments[0] == 9.0
    assert moments[-1] == kept


def test_a_validation_at_a_stop_counts_like_any_other(path, clock) -> None:
    """The step before it is logged already."""
    books = Books()
    late = {"event": "validated", "step": 3, "at": T0 + 15, "val_psnr": 31.0, "val_ssim": 0.9,
            "spent_usd": "0.00150000"}  # fmt: skip
    with make_recorder(path, books.run_context()) as recorder:
        first = step(1, at=11, val_psnr=30.0, val_ssim=0.8)
        for event in [start(10), first, *steps(2, 3, at=12), late]:
            recorder.on_event(event)
    assert [(v.step, v.psnr) for v in recorder.run.validations] == [(1, 30.0), (3, 31.0)]
    at, figures = books.metrics[-1]
    assert (at, figures["val_psnr"], figures["spent_usd"]) == (3, 31.0, 0.0015)
    assert figures["usd_per_tenth_db"] == pytest.approx((0.0015 - 0.0011) / 10)
    assert len(lines(path, "validated")) == 1


def test_losses_shorten_the_time_between_checkpoints(path, clock) -> None:
    """By the same rule as for a driver that starts, and while this one goes on."""
    with make_recorder(path, Books().run_context()) as recorder:
        recorder.on_event(start(1))
        recorder.on_event(step(1, 2))
        before = recorder.run.checkpoint_every_seconds
        recorder.on_event(start(30, resumed_from=0))
        after = recorder.run.checkpoint_every_seconds
    assert after < before
    assert after == read_progress(path).checkpoint_every_seconds
