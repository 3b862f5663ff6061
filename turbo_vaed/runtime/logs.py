"""Logs as JSON, an object a line: records, and what is printed for a person.

A flow, its stages and what they start write to one stream. What a child process or a library
prints as text becomes the message of an object; what a child of ours wrote as JSON passes as it is.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from turbo_vaed.settings import logs_are_json

_OWN_KEYS = {"time", "level", "logger", "message"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time (ISO 8601, UTC), level, logger, message; customer and run
    where they are known; exception."""

    def __init__(self) -> None:
        super().__init__()
        self.context: dict[str, str] = {}

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self.context,
        }
        if record.exc_info and record.exc_info[1] is not None:
            document["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(document, default=str, ensure_ascii=False)


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes beneath the streams that `_Lines` replaces."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.lines = JsonFormatter()
        self.setFormatter(self.lines)


class _Lines:
    """A text stream whose lines become JSON objects; it takes the place of sys.stdout or
    sys.stderr."""

    def __init__(self, stream: TextIO, handler: JsonHandler, name: str) -> None:
        self.stream, self._handler, self._name = stream, handler, name
        self._local = threading.local()  # `print` writes a text and its end one by one

    def write(self, text: str) -> int:
        *lines, self._local.pending = (self._pending() + text).split("\n")
        for line in lines:
            self._emit(line)
        return len(text)

    def _pending(self) -> str:
        found: str = getattr(self._local, "pending", "")
        return found

    def _emit(self, line: str) -> None:
        line = line.rpartition("\r")[2].rstrip()  # of a bar, what stands there in the end
        if not line:
            return
        if is_ours(line):
            self.stream.write(f"{line}\n")
            return
        level = {"levelno": logging.INFO, "levelname": "INFO"}  # nobody has graded it
        record = logging.makeLogRecord({"name": self._name, "msg": line, **level})
        self.stream.write(f"{self._handler.lines.format(record)}\n")

    def flush(self) -> None:
        self.stream.flush()

    def finish(self) -> None:
        """Write what has no end of line yet."""
        self._emit(self._pending())
        self._local.pending = ""
        self.stream.flush()

    def isatty(self) -> bool:
        return False  # no bars

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def is_ours(line: str) -> bool:
    """Whether a line is an object that `JsonFormatter` has made."""
    return _parsed(line) is not None


def message_of(line: str) -> str:
    """What a line says: of an object of `JsonFormatter`, its message and exception."""
    found = _parsed(line)
    if found is None:
        return line
    return "\n".join(str(found[key]) for key in ("message", "exception") if key in found)


def _parsed(line: str) -> dict[str, object] | None:
    if not line.startswith('{"time": '):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() >= _OWN_KEYS else None


def of_command() -> None:
    """From here on, where JSON is wanted, logs are JSON on stderr, as is whatever else is printed
    there; what is printed on stdout is an answer, and stays as it is.

    Raises:
        UserError: TURBO_VAED_LOGS is neither `text` nor `json`.
    """
    if logs_are_json():
        _write_json(with_stdout=False)


def of_run(customer: str = "", run: str = "") -> None:
    """As `of_command`, for what runs a customer's stages: stdout is a log, too, and each line says
    whose run it is. Called again, it takes off what a library has put beside it meanwhile."""
    if not logs_are_json():
        return
    context = {"customer": customer, "run": run}
    _write_json(with_stdout=True).context = {key: name for key, name in context.items() if name}


def _write_json(*, with_stdout: bool) -> JsonFormatter:
    root = logging.getLogger()
    own = [one for one in root.handlers if isinstance(one, JsonHandler)]
    handler = own[0] if own else JsonHandler(_beneath(sys.stderr))
    others = [one for one in root.handlers if not isinstance(one, logging.StreamHandler)]
    root.handlers[:] = [handler, *others]
    for name in ("turbo_vaed", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)
    if not isinstance(sys.stderr, _Lines):
        stderr: Any = _Lines(sys.stderr, handler, "stderr")
        sys.stderr = stderr
    if with_stdout and not isinstance(sys.stdout, _Lines):
        stdout: Any = _Lines(sys.stdout, handler, "stdout")
        sys.stdout = stdout
    return handler.lines


def finish() -> None:
    """Before the process ends: write lines that have no end yet."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Lines):
            stream.finish()


def _beneath(stream: Any) -> TextIO:
    found: TextIO = stream.stream if isinstance(stream, _Lines) else stream
    return found
