"""An S3's endpoint, as a server in a thread or as a process that can be killed: it passes whole
requests on to moto's S3 behind it, which has the objects.

`python -m tests.drills.endpoint PORT PORT_BEHIND`
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
_OF_THE_HOP = ("connection", "transfer-encoding", "content-length", "server", "date")


class Quiet(BaseHTTPRequestHandler):
    """Answers, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def answer(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        length: str | None = None,
    ) -> None:
        """
        Args:
            length: of the body, where it is not sent: to a HEAD.
        """
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def passing_on(port: int, refuses: Callable[[], bool] = lambda: False) -> type[Quiet]:
    """A handler of requests, which passes them on to the server behind it. One whose body was cut
    off it does not pass on: an object is there whole or not at all.

    Args:
        port: of the server behind it.
        refuses: whether it answers 500 instead.
    """

    class Proxy(Quiet):
        def forward(self) -> None:
            wanted = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(wanted)
            if len(body) < wanted:
                return
            if refuses():
                self.answer(500, b"")
                return
            behind = http.client.HTTPConnection(HOST, port, timeout=60)
            behind.request(self.command, self.path, body, dict(self.headers))
            reply = behind.getresponse()
            kept = {k: v for k, v in reply.getheaders() if k.lower() not in _OF_THE_HOP}
            length = reply.getheader("Content-Length") if self.command == "HEAD" else None
            self.answer(reply.status, reply.read(), kept, length)
            behind.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    return Proxy


if __name__ == "__main__":
    own, port_behind = map(int, sys.argv[1:])
    ThreadingHTTPServer((HOST, own), passing_on(port_behind)).serve_forever()
