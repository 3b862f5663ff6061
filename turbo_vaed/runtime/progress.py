"""One progress style: a Rich bar for a terminal, a line every few seconds for a log; durations."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from turbo_vaed.settings import logs_are_json

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LINE_EVERY_SECONDS = 10.0
_BAR_WIDTH = 20


@contextmanager
def progress(
    label: str, total: int, *, has_own_estimate: bool = False
) -> Iterator[Callable[[int, str], None]]:
    """Show progress of `label` towards `total`; yields `update(done, detail)`.

    What is printed meanwhile stands above the bar.

    Args:
        has_own_estimate: the details show the time left, more accurately than the bar could.
    """
    is_json = logs_are_json()
    if sys.stdout.isatty() and not is_json:
        columns: list[ProgressColumn] = [
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            *([] if has_own_estimate else [TimeRemainingColumn()]),
            TextColumn("{task.fields[detail]}", markup=False, table_column=Column(ratio=1)),
        ]
        with Progress(*columns, console=Console(file=sys.stdout), expand=True) as bar:
            task = bar.add_task(label, total=total, detail="")
            yield lambda done, detail: bar.update(task, completed=done, detail=detail)
        return
    last, shown = 0.0, ""

    def line(done: int, detail: str) -> None:
        nonlocal last, shown
        now = time.monotonic()
        text = f"{label} {done}/{total}  {detail}".rstrip()
        if text != shown and (now - last >= _LINE_EVERY_SECONDS or done >= total):
            last, shown = now, text
            if is_json:
                _log.info("%s", text)
            else:
                print(text, flush=True)

    yield line


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """`items`, counted up to `total` where a person can follow."""
    with progress(label, total) as update:
        for done, item in enumerate(items, 1):
            yield item
            update(done, "")


def format_duration(seconds: float) -> str:
    """`2:31` minutes and seconds, `1:02:05` hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
