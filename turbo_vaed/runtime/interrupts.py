"""A closed terminal or a `kill` ends a command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """In the block, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, unless they are
    ignored, as by nohup. In another thread it changes nothing: Python takes signals in the main one
    alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    kept = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """After the block, SIGTERM means what it meant before: a library that puts a handler of its own
    in place, as Ray does, would end the process before its work is saved."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def shielded(*numbers: signal.Signals) -> Iterator[None]:
    """Processes that the block starts never get these signals: a terminal's Ctrl-C, and its end, go
    to all of its foreground. They are ended by this one, once it needs them no longer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
