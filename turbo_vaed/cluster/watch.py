"""Watches a cluster's nodes through a child process.

A process that is connected to Ray ends together with the cluster's head, whatever it was doing. A
stage on this machine must not, so a child is connected in its place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Any, Self

from turbo_vaed.cluster.nodes import own_node, ray_nodes
from turbo_vaed.cluster.session import ray_session
from turbo_vaed.errors import Unreachable

CONNECT_SECONDS = 60.0
"""Ray takes some seconds to connect; a busy machine needs longer."""
SILENT_SECONDS = 60.0
"""After this long without news it is unknown which nodes there are."""


class Watch:
    """Lists the nodes of the cluster at `address` every `seconds` until the block ends.

    Raises:
        Unreachable: on entry, where no Ray answers.
    """

    def __init__(self, address: str, *, seconds: float) -> None:
        self._address, self._seconds = address, seconds
        self._seen: list[dict[str, Any]] = []
        self._seen_at = 0.0
        self.own_node = ""
        """Ray's id of this machine."""

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill
        self._child = subprocess.Popen(
            [sys.executable, "-m", "turbo_vaed.cluster.watch", self._address, str(self._seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._first = threading.Event()
        self._reader = threading.Thread(target=self._read, name="cluster-watch", daemon=True)
        self._reader.start()
        if not self._first.wait(CONNECT_SECONDS) or not self._seen_at:
            self._end()
            raise Unreachable(self._last_error_line() or f"Ray at {self._address} does not answer")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._stderr.close()

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes as last seen, as `ray_nodes` lists them.

        Raises:
            Unreachable: the child has ended, or has sent nothing for a long time.
        """
        is_fresh = time.monotonic() - self._seen_at < SILENT_SECONDS + self._seconds
        if not is_fresh or self._child.poll() is not None:
            raise Unreachable(f"the nodes of the cluster at {self._address} are not known any more")
        return self._seen

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            try:
                message = json.loads(line)
                self.own_node, self._seen = message["own"], message["nodes"]
            except (ValueError, KeyError, TypeError):
                continue  # a line of Ray's own
            self._seen_at = time.monotonic()
            self._first.set()
        self._first.set()  # it has ended

    def _end(self) -> None:
        self._child.kill()
        self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        self._child.stdout.close()

    def _last_error_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines()
        self._stderr.close()
        return lines[-1] if lines else ""


def main(address: str, seconds: float) -> None:
    """Print the nodes, a line of JSON each time, until nobody reads."""
    with ray_session(address):
        own = own_node()
        while True:
            nodes = [{key: node.get(key) for key in ("NodeID", "Labels")} for node in ray_nodes()]
            print(json.dumps({"own": own, "nodes": nodes}), flush=True)
            time.sleep(seconds)


if __name__ == "__main__":
    try:
        main(sys.argv[1], float(sys.argv[2]))
    except Unreachable as error:
        sys.exit(str(error))
