"""AWS Device Farm on loopback: its API, its uploads, and a phone that is this machine.

A scheduled run is done as Device Farm would: the package is unpacked and the commands of the test
specification are run beside an `adb` (`fake_phone`). `trouble` selects how it misbehaves.
"""

import io
import json
import os
import signal
import subprocess
import tempfile
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from tests.devices.fake_phone import SERIAL

PROJECT = "arn:aws:devicefarm:us-west-2:123456789012:project:p1"
DEVICE = "arn:aws:devicefarm:us-west-2::device:d1"
RUN = "arn:aws:devicefarm:us-west-2:123456789012:run:p1/r1"
UPLOAD = "arn:aws:devicefarm:us-west-2:123456789012:upload:p1/"
MINUTES = 3.25


class Farm:
    """The service; its state is for tests to look at."""

    def __init__(self):
        self.trouble, self.calls, self.uploads, self.scheduled = "", Counter(), {}, None
        self.status, self.result, self.artifact = "PENDING", "PENDING", b""
        self.tags, self.minute_seconds = {}, 60.0
        farm = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def answer(self, status, data):
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self):
                name = self.headers["X-Amz-Target"].split(".")[1]
                status, document = farm.ask(name, json.loads(self.body()))
                self.answer(status, json.dumps(document).encode())

            def do_PUT(self):
                farm.uploads[self.path.split("/")[-1].partition("?")[0]]["data"] = self.body()
                self.answer(200, b"")

            def do_GET(self):
                self.answer(200, farm.artifact)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ask(self, name, given):
        self.calls[name] += 1
        if f"throttle {name}" in self.trouble and self.calls[name] == 1:
            return 400, {"__type": "ThrottlingException", "message": "Rate exceeded"}
        if f"deny {name}" in self.trouble:
            return 400, {"__type": "AccessDeniedException", "message": "you may not"}
        return 200, getattr(self, name)(given)

    def GetProject(self, given):
        assert given["arn"] == PROJECT
        return {"project": {"arn": PROJECT, "name": "turbo-vaed"}}

    def GetDevice(self, given):
        phone = {"manufacturer": "Acme", "model": "P1", "platform": "ANDROID", "os": "15"}
        return {"device": {**phone, "arn": given["arn"], "availability": "HIGHLY_AVAILABLE",
                           "cpu": {"architecture": "ARM64"}}}  # fmt: skip

    def CreateUpload(self, given):
        assert given["projectArn"] == PROJECT
        name = f"u{len(self.uploads)}"
        self.uploads[name] = {**given, "looks": 0}
        upload = {
            "arn": UPLOAD + name,
            "status": "INITIALIZED",
            "url": f"{self.url}/put/{name}?signature=x",
        }
        return {"upload": upload}

    def GetUpload(self, given):
        upload = self.uploads[given["arn"].removeprefix(UPLOAD)]
        upload["looks"] += 1
        status = "PROCESSING" if upload["looks"] == 1 else "SUCCEEDED"
        if self.trouble == "refuse upload" and status == "SUCCEEDED":
            return {"upload": {"status": "FAILED", "message": "no tests were found"}}
        return {"upload": {"status": status}}

    def DeleteUpload(self, given):
        self.uploads[given["arn"].removeprefix(UPLOAD)]["deleted"] = True
        return {}

    def ScheduleRun(self, given):
        self.scheduled = given
        return {"run": {"arn": RUN, "status": "PENDING"}}

    def TagResource(self, given):
        assert given["ResourceARN"] == RUN
        self.tags = {tag["Key"]: tag["Value"] for tag in given["Tags"]}
        return {}

    def GetRun(self, _given):
        if self.status == "PENDING" and self.trouble != "never":
            self.status = "RUNNING"
        elif self.status == "RUNNING":
            self._run()
        minutes = MINUTES if self.status == "COMPLETED" else 0.0
        return {"run": {
            "arn": RUN, "status": self.status, "result": self.result, "message": "all green",
            "deviceMinutes": {"total": minutes, "metered": minutes, "unmetered": 0.0},
        }}  # fmt: skip

    def StopRun(self, _given):
        self.status, self.result = "COMPLETED", "STOPPED"
        return {"run": {"arn": RUN, "status": "STOPPING"}}

    def ListArtifacts(self, given):
        assert (given["arn"], given["type"]) == (RUN, "FILE")
        video = {"type": "VIDEO", "name": "Video", "extension": "mp4", "url": f"{self.url}/video"}
        left = {"type": "CUSTOMER_ARTIFACT", "name": "Customer Artifacts", "extension": "zip",
                "url": f"{self.url}/artifact"}  # fmt: skip
        return {"artifacts": [video] if self.trouble == "no artifact" else [video, left]}

    def _run(self):
        if self.trouble in ("garbage", "no artifact"):
            self.status, self.result, self.artifact = "COMPLETED", "PASSED", b"<html>"
            return
        test = self.scheduled["test"]
        package, specification = (
            self.uploads[test[name].removeprefix(UPLOAD)]["data"]
            for name in ("testPackageArn", "testSpecArn")
        )
        with tempfile.TemporaryDirectory() as scratch:
            place, log = Path(scratch) / "package", Path(scratch) / "log"
            log.mkdir()
            zipfile.ZipFile(io.BytesIO(package)).extractall(place)
            environment = {
                **os.environ, "DEVICEFARM_TEST_PACKAGE_PATH": str(place),
                "DEVICEFARM_LOG_DIR": str(log), "DEVICEFARM_DEVICE_UDID": SERIAL,
            }  # fmt: skip
            commands = yaml.safe_load(specification)["phases"]["test"]["commands"]
            minutes = self.scheduled["executionConfiguration"]["jobTimeoutMinutes"]
            job = subprocess.Popen(
                ["bash", "-c", "\n".join(commands)], env=environment, start_new_session=True
            )
            try:
                code = job.wait(minutes * self.minute_seconds)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                code = job.wait()
            self.status, self.result = "COMPLETED", "FAILED" if code else "PASSED"
            written = io.BytesIO()
            with zipfile.ZipFile(written, "w") as archive:
                for path in log.rglob("*"):
                    archive.write(path, f"Host_Machine_Files/{path.relative_to(scratch)}")
        self.artifact = written.getvalue()
