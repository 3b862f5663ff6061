"""What a stage prints, line by line in Prefect, in the logs of its task's run, as it comes."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import LogCreate
from prefect.runtime import flow_run, task_run
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

from turbo_vaed.runtime import logs

MOST_LINES = 10_000
"""Of a stage; of what it prints beyond, the last `LAST_LINES` are sent when it has ended."""
LAST_LINES = 200
MOST_CHARACTERS = 2_000
"""Of a line."""
MOST_WAITING = 2_000
"""Lines kept for a server that does not answer; the oldest are left out."""
SEND_SECONDS = 1.0
"""Between two requests."""
AGAIN_SECONDS = 10.0
"""After one that failed."""
TIMEOUT_SECONDS = 5.0
"""Of a request; also what the end of a stage waits for at most, twice."""
_BATCH = 500
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and cursor movements, and what PostgreSQL takes in no text."""
log = logging.getLogger(__name__)


@contextmanager
def opened(stage: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that takes a line, from any thread, and returns at once. It does nothing
    without a stage, outside of a task, or where Prefect's server is a temporary one, which nobody
    can look at.

    It is not Prefect's own handler of logs, which keeps any number of lines, complains on the
    console, and waits without limit at the end, where its server does not answer.
    """
    is_kept = PREFECT_API_URL.value() and get_current_settings().logging.to_api.enabled
    if not (stage and is_kept and flow_run.id and task_run.id):
        yield lambda line: None
        return
    lines = StageLog(stage, flow_run=UUID(str(flow_run.id)), task_run=UUID(str(task_run.id)))
    context = contextvars.copy_context()  # it has Prefect's settings
    sender = threading.Thread(target=context.run, args=(lines.send,), name="stage log", daemon=True)
    sender.start()
    try:
        yield lines.add
    finally:
        lines.end()
        sender.join(2 * TIMEOUT_SECONDS)


class StageLog:
    """Lines that wait to be sent, and the loop that sends them."""

    def __init__(self, stage: str, *, flow_run: UUID, task_run: UUID) -> None:
        self._stage, self._flow_run, self._task_run = stage, flow_run, task_run
        self._waiting: deque[LogCreate] = deque()
        self._last: deque[LogCreate] = deque(maxlen=LAST_LINES)
        self._count = self._left_out = 0
        self._lock, self._is_over = threading.Lock(), threading.Event()

    def add(self, line: str) -> None:
        """Take a line; one that a carriage return ends is a progress bar that is drawn again."""
        text = _ESCAPES.sub("", logs.message_of(line.rstrip()))
        if line.endswith("\r") or not text:
            return
        if len(text) > MOST_CHARACTERS:
            text = f"{text[:MOST_CHARACTERS]} … {len(text) - MOST_CHARACTERS} more characters"
        with self._lock:
            self._count += 1
            one = self._line(text)
            if self._count > MOST_LINES:
                self._left_out += len(self._last) == LAST_LINES
                self._last.append(one)
                return
            if len(self._waiting) == MOST_WAITING:
                self._waiting.popleft()
                self._left_out += 1
            self._waiting.append(one)

    def _line(self, text: str) -> LogCreate:
        is_error = text.startswith(("error:", "ERROR", "fault:", "refused:", "Traceback "))
        return LogCreate.model_validate(
            {
                "name": f"stage.{self._stage}",
                "level": logging.ERROR if is_error else logging.INFO,
                "message": text,
                "timestamp": datetime.now(UTC),
                "flow_run_id": self._flow_run,
                "task_run_id": self._task_run,
            }
        )

    def end(self) -> None:
        """No line comes any more: what waits is sent once, and the sender ends."""
        with self._lock:
            if self._left_out:
                note = f"{self._left_out} lines of {self._stage} are not in this log"
                self._waiting.append(self._line(note))
            self._waiting.extend(self._last)
            self._last.clear()
        self._is_over.set()

    def send(self) -> None:
        """Send lines until `end`; whatever Prefect says, the stage goes on."""
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_SECONDS}) as client,
        ):
            seconds = SEND_SECONDS
            while not self._is_over.wait(seconds):
                seconds = SEND_SECONDS if self._send_waiting(client) else AGAIN_SECONDS
            while self._waiting and self._send_waiting(client):
                pass
        if self._waiting:
            log.warning("%d lines of %s did not reach Prefect", len(self._waiting), self._stage)

    def _send_waiting(self, client: SyncPrefectClient) -> bool:
        with self._lock:
            batch = list(islice(self._waiting, _BATCH))
        if not batch:
            return True
        try:
            client.create_logs(batch)
        except Exception as error:
            log.debug("Prefect does not take the lines of %s: %s", self._stage, error)
            return False
        with self._lock:
            sent = {id(one) for one in batch}
            while self._waiting and id(self._waiting[0]) in sent:
                self._waiting.popleft()
        return True
