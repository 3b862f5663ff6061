"""What ends a command, and what does not end the processes that it needs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from turbo_vaed.runtime.interrupts import keeping_handlers, shielded, signals_interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_and_a_closed_terminal_are_interrupts(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_shielded_process_does_not_end_with_its_terminal(number):
    """Even one that takes interrupts itself, as a server does."""
    waits = (
        "import signal, time; signal.signal(2, signal.default_int_handler); print(1, flush=True)"
    )
    with shielded(number):
        child = subprocess.Popen(
            [sys.executable, "-c", f"{waits}; time.sleep(60)"], stdout=subprocess.PIPE
        )
    assert child.stdout is not None and child.stdout.readline()
    os.kill(child.pid, number)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    child.terminate()
    assert child.wait(30) == -signal.SIGTERM
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_library_does_not_take_sigterm_away():
    """As Ray does, whose handler would end a stage before it has saved."""
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        with keeping_handlers():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
