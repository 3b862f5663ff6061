"""`turbo-vaed ec2 run` from submission to a passed gate. The test takes EC2's part: it boots each
machine that moto is asked to start, the controller and its autoscaler's workers, by the machine's
own user data, as processes here.

Real are PostgreSQL, MLflow, Prefect, S3 and Secrets Manager (moto's, by HTTP), Ray's head with its
autoscaler, its raylets and the run. Paths of the image lie in a folder of the test.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import ray
import yaml

from tests.costs.conftest import Postgres
from tests.e2e import checkout
from tests.loopback import mlflow_server
from tests.ray_head import ENVIRONMENT
from turbo_vaed.cluster.autoscaler import CLUSTER, PYTHON_ROOT, VARIABLES
from turbo_vaed.cluster.environment import FILE, Environment
from turbo_vaed.costs.ledger import Ledger
from turbo_vaed.costs.price_cache import CachedPrices, save

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
TYPE = "c7i.2xlarge"


class Ec2:
    """Boots moto's machines here."""

    def __init__(self, where: Environment, root: Path, folder: Path, given: dict[str, str]) -> None:
        self.where, self.root, self.folder = where, root, folder
        self.address = ray.util.get_node_ip_address()
        self.failure = ""
        self.machines: dict[str, dict[str, Any]] = {}
        self.booted: dict[str, subprocess.Popen[bytes]] = {}
        self.client = boto3.client("ec2", region_name=where.region)
        self.metadata = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        variables = "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items())
        (folder / "turbo-vaed.env").write_text(variables)
        (folder / "bin").mkdir()
        shutdown = folder / "bin/shutdown"  # of a machine: here its user data's end is one
        shutdown.write_text("#!/bin/sh\n")
        shutdown.chmod(0o755)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=run, daemon=True)
            for run in (self.metadata.serve_forever, self._watch)
        ]

    def __enter__(self) -> Ec2:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads[1].join()
        self.metadata.shutdown()
        for process in self.booted.values():
            self._end(process)
        assert not self.failure

    def log(self) -> str:
        return self.failure + "\n".join(
            path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log"))
        )

    def _watch(self) -> None:
        try:
            self._boot_all()
        except Exception as error:  # of this thread, which nobody would hear
            self.failure = repr(error)

    def _boot_all(self) -> None:
        wanted = [{"Name": f"tag:{CLUSTER}", "Values": [self.where.name]}]
        while not self._over.wait(1):
            found = self.client.describe_instances(Filters=wanted)["Reservations"]
            for machine in (one for each in found for one in each["Instances"]):
                name, state = machine["InstanceId"], machine["State"]["Name"]
                if state in ("pending", "running") and name not in self.booted:
                    self.machines[name] = machine
                    self.booted[name] = self._boot(machine)
                elif state not in ("pending", "running") and name in self.booted:
                    self._end(self.booted[name])

    def _boot(self, machine: dict[str, Any]) -> subprocess.Popen[bytes]:
        name = machine["InstanceId"]
        home = self.folder / name
        home.mkdir()
        stored = self.client.describe_instance_attribute(InstanceId=name, Attribute="userData")
        script = base64.b64decode(stored["UserData"]["Value"]).decode()
        for path, here in (
            ("/var/log/turbo-vaed.log", self.folder / f"{name}.log"),
            (VARIABLES, self.folder / "turbo-vaed.env"),
            (PYTHON_ROOT, self.root),
        ):
            assert path in script, script
            script = script.replace(path, str(here))
        port = self.metadata.server_address[1]
        return subprocess.Popen(
            ["bash", "-c", script],
            env={
                **checkout.environment(self.root),
                "HOME": str(home),
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{port}/{name}",
            },
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """All that the machine runs, also what has left its session: its HOME is in the folder."""
        home = next(f"{self.folder}/{n}" for n, p in self.booted.items() if p is process)
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if one.environ().get("HOME") == home:
                    one.send_signal(signal.SIGKILL)
        process.wait()

    def _handler(ec2) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._answer(200, "a token")

            def do_GET(self) -> None:
                _, name, _, _, path = self.path.split("/", 4)
                machine = ec2.machines[name]
                facts = {
                    "instance-id": name,
                    "local-ipv4": ec2.address,
                    "instance-type": machine["InstanceType"],
                    "instance-life-cycle": machine.get("InstanceLifecycle", "on-demand"),
                    "placement/region": ec2.where.region,
                    "placement/availability-zone": machine["Placement"]["AvailabilityZone"],
                }
                self._answer(200 if path in facts else 404, facts.get(path, ""))

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def test_a_laptop_submits_and_the_cluster_does_the_rest(
    on_ec2: Environment, postgres: Postgres, s3_url: str, tmp_path: Path
) -> None:
    laptop = checkout.make(tmp_path / "laptop", remote=tmp_path / "remote")
    added = ["customer", "add", "tiny", "--source", "videos", "--use-case", "education"]
    checkout.turbo_vaed(laptop, *added).check_returncode()
    checkout.override(laptop, **checkout.TINY)
    candidate = {
        "instance_type": TYPE, "region": on_ec2.region, "zones": list(on_ec2.subnets), "speed": 4,
        "interruptions_per_hour": 0.05, "source": "a test",
    }  # fmt: skip
    finance = yaml.safe_load((laptop / "finance.yaml").read_text())
    finance["prices"] |= {"candidates": [candidate], "quote_hours": 24}
    (laptop / "finance.yaml").write_text(yaml.safe_dump(finance))
    (laptop / FILE).parent.mkdir(parents=True)
    (laptop / FILE).write_text(yaml.safe_dump(on_ec2.model_dump(mode="json")))
    secret = boto3.client("secretsmanager", region_name=on_ec2.region)
    secret.create_secret(Name=on_ec2.token_secret, SecretString="guess" * 8)
    now = datetime.now(UTC)
    quoted = CachedPrices(quoted_at=now, points=((now.replace(year=2025), Decimal("0.1")),))
    controller_type = on_ec2.controller.instance_type
    for market, name, zone in itertools.product(
        ("spot", "on-demand"), (TYPE, controller_type), (*on_ec2.subnets, on_ec2.region)
    ):
        save(laptop / "state/prices" / f"{market}_{zone}_{name}.json", quoted)
    bucket = s3_url.split("/")[2]
    controller = tmp_path / "controller"
    subprocess.run(["cp", "-r", laptop, controller], check=True)
    (controller / ".venv").symlink_to(sys.prefix)
    with (
        checkout.prefect_server(laptop) as prefect,
        mlflow_server(tmp_path) as tracking,
        tempfile.TemporaryDirectory(prefix="tv") as folder,
    ):
        given = {
            **prefect,
            **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
            **ENVIRONMENT,
            "AWS_DEFAULT_REGION": on_ec2.region,
            "TURBO_VAED_LEDGER_URL": postgres.new_database(),
            "MLFLOW_TRACKING_URI": tracking,
            "TURBO_VAED_CHECKPOINTS": f"s3://{bucket}/checkpoints",
            "TURBO_VAED_ARRAYS": f"s3://{bucket}/arrays",
        }
        with Ec2(on_ec2, controller, Path(folder), given) as ec2:
            done = checkout.turbo_vaed(laptop, "ec2", "run", "tiny", **given)
            print(done.stdout, done.stderr, ec2.log())
            assert done.returncode == 0, done.stdout + done.stderr + ec2.log()
            roles = [one["InstanceType"] for one in ec2.machines.values()]
            assert sorted(roles) == sorted([controller_type, TYPE])
        with Ledger.open(given["TURBO_VAED_LEDGER_URL"]) as ledger:
            paid = {charge.resource for charge in ledger.charges(customer="tiny")}
        assert {TYPE, controller_type} <= paid
