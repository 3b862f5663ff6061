"""A run on a machine of its own: which, with what tags and files, and that it ends.

Ray's launcher is the real one, EC2 is moto's server; `ssh` and `rsync`, which nothing answers
here, are executables that keep what they were told.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import ec2, runs
from tests.costs.charges import START, charge
from turbo_vaed.costs import Ledger, PriceBook
from turbo_vaed.costs.aws_prices import Ec2Prices, Ec2Quote
from turbo_vaed.errors import BudgetRefused, Fault, UserError
from turbo_vaed.poc import Poc
from turbo_vaed.settings import Settings
from turbo_vaed.stages import prices
from turbo_vaed.stages.cluster import INSTANCE_TYPE, MARKET, REGION, ZONE
from turbo_vaed.stages.estimates import pace_key

REPOSITORY = Path(__file__).parents[2]
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPOT_USD = {"eu-central-1a": "0.40", "eu-central-1b": "0.25"}
FAKE = """#!/bin/sh
# Stands in for {name}: no machine answers here. Keeps its arguments, and hands out what a run
# would have left there.
echo "{name} $*" >> {folder}/calls
for last; do :; done
case "{name} $last" in
  "rsync "*/fetched/exit-code) echo 1 > "$last";;
  "rsync "*/fetched/demo) mkdir -p "$last/gate"; echo there > "$last/gate/verdict.json";;
  "rsync "*/fetched/dvc.lock) cp {folder}/dvc.lock "$last";;
esac
"""
THEIR_LOCK = {"schema": "2.0", "stages": {"gate@demo": {"cmd": "new"}, "gate@acme": {"cmd": "old"}}}


class Listed(Ec2Prices):
    """Prices without AWS; what AWS says is tested with `Ec2Prices` itself."""

    def quote(
        self,
        instance_type: str,
        market: str,
        region: str,
        zone: str | None = None,
        at: datetime | None = None,
    ) -> Ec2Quote | str:
        usd = "1.00" if market == "on-demand" else SPOT_USD.get(zone or "")
        if usd is None:
            return "AWS tells no price"
        return Ec2Quote(usd_per_hour=Decimal(usd), since=NOON, quoted_at=NOON, source="a list")


@pytest.fixture
def book(tmp_path: Path) -> PriceBook:
    listed = Listed(folder=tmp_path / "prices", max_age=timedelta(hours=1))
    return PriceBook(local_usd_per_hour=Decimal("0.08"), ec2=listed)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TURBO_VAED_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("TURBO_VAED_CHECKPOINTS", "s3://checkpoints/here")
    root = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "assets/teachers/tiny-ltx", root / "assets/teachers/tiny-ltx")
    for name in ("params.yaml", "dvc.yaml", "infra/ray/machine.yaml", ".gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    (root / "data" / "demo").mkdir(parents=True)
    (root / "data" / "demo" / "a.mp4").touch()
    subprocess.run(["git", "init", "--quiet", root], check=True)
    return Settings.from_environment(root)


@pytest.fixture
def poc(settings: Settings) -> Poc:
    """Trained here before: 36 seconds a step, a thousand steps to go."""
    poc = Poc.load(settings.root, "demo")
    longer = dataclasses.replace(poc.params.distill, steps=1000)
    poc = dataclasses.replace(poc, params=dataclasses.replace(poc.params, distill=longer))
    key = pace_key(longer, settings)
    rows = [{"step": i + 1, "at": 36.0 * i} for i in range(101)]
    poc.folder("distill").mkdir(parents=True)
    history = {"steps": rows, "pace_key": key}
    (poc.folder("distill") / "history.json").write_text(json.dumps(history))
    return poc


@pytest.fixture
def run(poc: Poc) -> runs.Run:
    return runs.begin(poc.work, poc.customer)


def template() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / ec2.TEMPLATE).read_text())
    return found


def test_the_machine_is_the_cheapest_of_ec2_and_ends_itself_when_the_budget_does(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    picked = ec2.pick(poc, settings, run, book=book)
    machine = picked.choice.machine
    assert (machine.instance_type, machine.market, machine.zone) == (
        "g5.xlarge", "spot", "eu-central-1b"
    )  # fmt: skip
    assert picked.minutes == 95 * 60, "95 USD at the 1.00 USD an hour that spot can come to"
    assert "at $0.25 an hour; the machine ends itself after 5700 minutes" in picked.sentence
    slower = ec2.pick(poc, settings, run, book=book, instance_type="g6.xlarge", market="on-demand")
    assert (slower.choice.machine.instance_type, slower.choice.machine.market) == (
        "g6.xlarge", "on-demand"
    )  # fmt: skip


def test_what_was_spent_before_shortens_it(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run.run_id, quantity=Decimal(1), unit_price_usd=Decimal(90)))
    assert ec2.pick(poc, settings, run, book=book).minutes == 5 * 60


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"instance_type": "p9.huge"}, UserError, "p9.huge .* which has g6.xlarge, g5.xlarge"),
        ({"book": PriceBook(local_usd_per_hour=Decimal(1))}, BudgetRefused, "nothing is started"),
    ],
)
def test_nothing_to_be_had(
    poc: Poc,
    settings: Settings,
    run: runs.Run,
    change: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        ec2.pick(poc, settings, run, **change)


def test_a_run_that_does_not_fit_its_budget_starts_no_machine(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    budget = dataclasses.replace(poc.params.budget, run_usd=Decimal("0.01"))
    poor = dataclasses.replace(poc, params=dataclasses.replace(poc.params, budget=budget))
    with pytest.raises(
        BudgetRefused, match=r"is the cheapest at .* \$0\.01 are left of budget\.run_usd"
    ):
        ec2.pick(poor, settings, run, book=book)


def test_what_would_be_lost_with_the_machine_is_named(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    embedded = dataclasses.replace(
        settings, mlflow_tracking_uri="sqlite:///state/mlflow.db", checkpoints_url="work"
    )
    picked = ec2.pick(poc, settings, run, book=book)
    with pytest.raises(UserError) as told:
        ec2.prepare(poc, embedded, picked, run, name=ec2.PLANNED)
    for name in ("TURBO_VAED_LEDGER_URL", "MLFLOW_TRACKING_URI", "TURBO_VAED_CHECKPOINTS"):
        assert name in str(told.value)
    assert not (poc.work / "ec2").exists()


def on_postgres(settings: Settings) -> Settings:
    return dataclasses.replace(settings, ledger_url="postgresql://ledger.example/costs")


def test_ray_is_told_type_market_zone_tags_and_files_and_no_secret(
    poc: Poc,
    settings: Settings,
    run: runs.Run,
    book: PriceBook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t 'quoted'")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-machine")
    (settings.root / ".gitignore").write_text("/work/\n/secret\n")
    (settings.root / "secret").touch()
    elsewhere = tmp_path / "their videos"
    elsewhere.mkdir()
    poc = dataclasses.replace(poc, params=dataclasses.replace(poc.params, source=str(elsewhere)))
    picked = ec2.pick(poc, settings, run, book=book)
    written = ec2.prepare(poc, on_postgres(settings), picked, run, name=ec2.MACHINE)
    text = written.read_text()
    config = yaml.safe_load(text)
    assert "s3cr3t" not in text and "not-for-the-machine" not in text
    assert config["cluster_name"] == f"turbo-vaed-{run.run_id}"
    assert config["provider"]["region"] == "eu-central-1"
    assert config["provider"]["availability_zone"] == "eu-central-1b"
    node = config["available_node_types"]["machine"]["node_config"]
    assert node["InstanceType"] == "g5.xlarge"
    assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert node["UserData"] == "#!/bin/sh\nshutdown -h +5700\n"
    tags = {tag["Key"]: tag["Value"] for tag in node["TagSpecifications"][0]["Tags"]}
    assert tags["turbo-vaed:run"] == run.run_id and tags["turbo-vaed:customer"] == "demo"
    kinds = [spec["ResourceType"] for spec in node["TagSpecifications"]]
    assert kinds == ["instance", "volume", "spot-instances-request"]
    mounts = config["file_mounts"]
    assert all(Path(here).exists() for here in mounts.values())
    sent = Path(mounts["~/turbo-vaed"])
    assert (sent / "params.yaml").is_file() and (sent / "infra/ray/machine.yaml").is_file()
    assert not (sent / "secret").exists() and not (sent / "work").exists()
    assert mounts["~/turbo-vaed/work/demo/distill"] == str(poc.work / "distill")
    assert mounts["~/turbo-vaed/assets/teachers/tiny-ltx"].endswith("assets/teachers/tiny-ltx")
    assert not any("/ec2" in place for place in mounts)
    assert mounts["~/sources/demo"] == str(elsewhere)
    assert f"sudo ln -sfn ~/sources/demo '{elsewhere}'" in config["setup_commands"]
    environment = poc.work / "ec2" / "environment"
    assert environment.stat().st_mode & 0o077 == 0, "others must not read it"
    shown = subprocess.run(
        ["sh", "-c", f". {environment} 2> /dev/null; echo $MLFLOW_TRACKING_PASSWORD $RAY_ADDRESS"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "s3cr3t 'quoted' auto\n"
    assert "AWS_SECRET" not in environment.read_text()


def test_on_demand_asks_for_no_zone(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    picked = ec2.pick(poc, settings, run, book=book, market="on-demand")
    config = ec2.configuration(poc, run, picked, template())
    node = config["available_node_types"]["machine"]["node_config"]
    assert "InstanceMarketOptions" not in node and "availability_zone" not in config["provider"]
    assert [s["ResourceType"] for s in node["TagSpecifications"]] == ["instance", "volume"]


def test_a_template_that_lacks_a_part_is_named(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    picked = ec2.pick(poc, settings, run, book=book)
    with pytest.raises(UserError, match=r"infra/ray/machine\.yaml lacks 'provider'"):
        ec2.configuration(
            poc, run, picked, {k: v for k, v in template().items() if k != "provider"}
        )


def test_a_machine_of_ec2_is_charged_at_its_price_in_every_stage(
    poc: Poc, monkeypatch: pytest.MonkeyPatch, book: PriceBook
) -> None:
    labels = {
        INSTANCE_TYPE: "g5.xlarge",
        MARKET: "spot",
        REGION: "eu-central-1",
        ZONE: "eu-central-1b",
    }
    told = ",".join(f"{name}={value}" for name, value in labels.items())
    monkeypatch.setenv("TURBO_VAED_MACHINE", told)
    monkeypatch.setattr(prices, "price_book", lambda *_: book)
    settings = Settings.from_environment(poc.root)
    (rate,) = prices.nodes_of(poc.params, settings, "validate")().values()
    assert (rate.resource, rate.market) == ("g5.xlarge", "spot")
    assert rate.usd_per_hour == Decimal("0.25")
    assert prices.most_usd_per_hour(poc.params, settings, "distill") == Decimal("1.00")
    monkeypatch.setenv("TURBO_VAED_MACHINE", "g5.xlarge")
    with pytest.raises(UserError, match=r"TURBO_VAED_MACHINE is 'g5\.xlarge'; expected"):
        Settings.from_environment(poc.root)


@pytest.fixture
def remote(s3_url: str, tmp_path: Path, poc: Poc, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EC2 (moto's), and an `ssh` and `rsync` that keep what they are told in this folder."""
    import boto3

    folder, home = tmp_path / "remote", tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    home.mkdir()
    (folder / "dvc.lock").write_text(yaml.safe_dump(THEIR_LOCK))
    for name in ("ssh", "rsync"):
        fake = folder / "bin" / name
        fake.write_text(FAKE.format(name=name, folder=folder))
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # Ray's launcher keeps what it looked up there
    iam = boto3.client("iam")
    if not iam.list_instance_profiles()["InstanceProfiles"]:
        iam.create_instance_profile(InstanceProfileName="turbo-vaed")
    return folder


def machines() -> list[dict[str, Any]]:
    import boto3

    found = boto3.client("ec2", region_name="eu-central-1").describe_instances()
    return [machine for each in found["Reservations"] for machine in each["Instances"]]


def test_a_run_starts_its_machine_and_ends_it(
    remote: Path, poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    (poc.work / "gate" / "candidates").mkdir(parents=True)
    ours = {"schema": "2.0", "stages": {"gate@acme": {"cmd": "newer"}}}
    (poc.root / "dvc.lock").write_text(yaml.safe_dump(ours))
    picked = ec2.pick(poc, settings, run, book=book)
    config = ec2.prepare(poc, on_postgres(settings), picked, run, name=ec2.MACHINE)
    with ec2.started(config):
        (machine,) = machines()
        assert machine["State"]["Name"] == "running"
        assert machine["InstanceLifecycle"] == "spot"
        assert machine["Placement"]["AvailabilityZone"] == "eu-central-1b"
        tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        assert tags["turbo-vaed:run"] == run.run_id
        assert ec2.run_there(poc, config) == 1, "the exit code of the run: refused by the gate"
    assert [machine["State"]["Name"] for machine in machines()] == ["terminated"]
    assert (poc.work / "gate" / "verdict.json").read_text() == "there\n"
    assert not (poc.work / "gate" / "candidates").exists(), "what is gone there is gone here"
    lock = yaml.safe_load((poc.root / "dvc.lock").read_text())
    assert lock["stages"] == {"gate@demo": {"cmd": "new"}, "gate@acme": {"cmd": "newer"}}
    assert not config.exists()
    calls = (remote / "calls").read_text()
    order = ["/ec2/checkout", "make setup", "ray start --head", "node watch", "turbo-vaed poc demo"]
    places = [calls.index(words) for words in order]
    assert places == sorted(places)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Ray's launcher as a table of exit codes; returns the verbs that it was given."""

    def answer(**codes: int) -> list[str]:
        given: list[str] = []

        def ray(verb: str, *_: str) -> int:
            given.append(verb)
            return codes.get(verb.replace("-", "_"), 0)

        monkeypatch.setattr(ec2, "_ray", ray)
        return given

    return answer


def test_a_machine_that_cannot_be_set_up_is_ended(launcher: Callable[..., list[str]]) -> None:
    given = launcher(up=1)
    with pytest.raises(Fault, match="could not be started"), ec2.started(Path("m.yaml")):
        raise AssertionError("nothing runs on it")
    assert given == ["up", "down"]


@pytest.mark.parametrize("lost", [{"exec": 1}, {"rsync_down": 1}, {}])
def test_a_lost_machine_is_told_and_ended(
    poc: Poc, launcher: Callable[..., list[str]], lost: dict[str, int]
) -> None:
    """With an exit code of an earlier run lying about, which must not pass for this one's."""
    stale = ec2.folder(poc) / "fetched"
    stale.mkdir(parents=True)
    (stale / ec2.EXIT_CODE).write_text("0")
    given = launcher(**lost)
    with pytest.raises(Fault, match="was lost"), ec2.started(Path("m.yaml")):
        ec2.run_there(poc, Path("m.yaml"))
    assert (given[:2], given[-1]) == (["up", "exec"], "down")


def test_a_closed_terminal_ends_the_machine(launcher: Callable[..., list[str]]) -> None:
    given = launcher()
    with pytest.raises(KeyboardInterrupt, match="SIGHUP"), ec2.started(Path("m.yaml")):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)
    assert given == ["up", "down"]


def test_a_machine_that_may_be_up_is_not_forgotten(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    picked = ec2.pick(poc, settings, run, book=book)
    ec2.prepare(poc, on_postgres(settings), picked, run, name=ec2.MACHINE)
    for name in (ec2.MACHINE, ec2.PLANNED):
        with pytest.raises(UserError, match=r"may be up: .*turbo-vaed ec2 down demo"):
            ec2.prepare(poc, on_postgres(settings), picked, run, name=name)


def test_what_a_machine_was_up_beside_its_stages_is_charged(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    picked = ec2.pick(poc, settings, run, book=book)
    began = START - timedelta(minutes=5)
    with Ledger.open(settings.ledger_url) as ledger:
        ledger.add(charge(run=run.run_id, resource="g5.xlarge", market="spot"))  # 15 s
        ended = began + timedelta(minutes=10)
        added = ec2.charge_rest(ledger, poc, run, picked, began=began, ended=ended)
        assert added is not None and added.stage == "machine" and added.market == "spot"
        assert added.quantity == Decimal(585)
        assert added.amount_usd == pytest.approx(Decimal(585) * Decimal("0.25") / 3600)
        assert ec2.charge_rest(ledger, poc, run, picked, began=began, ended=began) is None


def test_without_a_price_on_demand_nothing_is_started(
    poc: Poc, settings: Settings, run: runs.Run, tmp_path: Path
) -> None:
    class OnlySpot(Listed):
        def quote(self, instance_type: str, market: str, *where: Any) -> Ec2Quote | str:
            if market == "on-demand":
                return "no permission"
            return super().quote(instance_type, market, *where)

    book = PriceBook(
        local_usd_per_hour=Decimal("0.08"),
        ec2=OnlySpot(folder=tmp_path / "prices", max_age=timedelta(hours=1)),
    )
    with pytest.raises(BudgetRefused, match=r"what g5\.xlarge spot in .* can come to is not"):
        ec2.pick(poc, settings, run, book=book)


def test_a_machine_that_ends_before_the_run_can_says_so(
    poc: Poc, settings: Settings, run: runs.Run, book: PriceBook
) -> None:
    """Cheap on spot, but what it can come to pays for less time than is needed."""
    budget = dataclasses.replace(poc.params.budget, run_usd=Decimal("0.15"))
    tight = dataclasses.replace(poc, params=dataclasses.replace(poc.params, budget=budget))
    picked = ec2.pick(tight, settings, run, book=book)
    assert picked.choice.usd < Decimal("0.15")
    assert picked.choice.seconds > picked.minutes * 60
    assert ", BEFORE the " in picked.sentence


def test_a_machine_that_cannot_be_ended_is_said_to_cost_money(
    launcher: Callable[..., list[str]],
) -> None:
    launcher(down=1)
    with pytest.raises(Fault, match="may still cost money"), ec2.started(Path("m.yaml")):
        pass
