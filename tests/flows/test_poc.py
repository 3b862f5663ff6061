"""What the flow tries again, and what it prints of a failure."""

from __future__ import annotations

import logging

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from flows import poc
from turbo_vaed.errors import BudgetRefused, CorruptFile, Fault, UserError


class State:
    def __init__(self, error):
        self.error = error

    def result(self, raise_on_failure):
        return self.error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Fault("lost a worker"), True),
        (CorruptFile("cut"), False),
        (UserError("no"), False),
        (BudgetRefused("no"), False),
    ],
)
def test_only_errors_that_may_pass_are_retried(error, again):
    assert poc.is_worth_retrying(None, None, State(error)) is again


@pytest.mark.parametrize(
    ("name", "message", "is_printed"),
    [
        ("prefect.flow_runs", "Encountered exception during execution: Fault('x')", False),
        ("prefect.task_runs", "Task run failed with exception: Fault('x')", False),
        ("prefect.task_runs", "Task run failed with exception: Fault('x') - Retry 1/1 will", True),
        ("prefect.flow_runs", "Finished in state Failed('Flow run encountered x')", False),
        ("prefect.flow_runs", "Finished in state Completed()", True),
        ("flows.effects", "Finished in state Failed( is nothing of Prefect's", True),
    ],
)
def test_a_failure_is_printed_by_the_command_only(name, message, is_printed):
    (console,) = [h for h in logging.getLogger().handlers if isinstance(h, PrefectConsoleHandler)]
    before = list(console.filters)
    try:
        poc.print_failures_once()
        record = logging.makeLogRecord({"name": name, "msg": message})
        assert bool(console.filter(record)) == is_printed
    finally:
        console.filters[:] = before
