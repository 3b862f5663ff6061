"""`turbo-vaed devices …`: what a person asks of a device without a run."""

import json
import re
import sys

import pytest

from tests import configs
from tests.devices.fake_phone import SERIAL, make_phone
from tests.devices.small import SHAPE
from turbo_vaed import cli
from turbo_vaed.cli import devices as verbs

pytestmark = pytest.mark.slow

GATE = {
    "device": "host", "threads": 1, "max_warmup": 1, "min_samples": 3, "max_samples": 4,
    "max_spread": 50.0, "refused_spread": 50.0, "confidence": 0.95, "max_background_cpu_share": 1.0,
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A configuration of its own; `write(devices, **gate)` writes into it."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("TURBO_VAED_ROOT", str(tmp_path))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)

    def write(devices=None, **gate):
        document = {
            "devices": devices or {"host": {"kind": "host"}},
            "defaults": {"gate": {**GATE, **gate}},
        }
        configs.write(tmp_path, document)

    write()
    return write


@pytest.fixture
def call(checkout, monkeypatch, capsys):
    """`call(*arguments)` -> (exit code, stdout, stderr); no traceback ever."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["turbo-vaed", "devices", *map(str, arguments)])
        code = cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.mark.usefixtures("in_this_process")
def test_without_options_bench_measures_as_the_gate_does(call, checkout, package):
    checkout(min_samples=5, max_samples=5, threads=2)
    code, out, err = call("bench", package.folder, "--format", "json")
    found = json.loads(out)  # nothing else is on stdout
    assert code == 0, err
    assert (found["threads"], found["target"]) == (2, "executorch-xnnpack/fp32")
    assert [len(seconds) for seconds in found["seconds_by_process"]] == [5, 5]


@pytest.mark.usefixtures("in_this_process")
def test_options_change_the_plan(call, package):
    code, out, err = call(
        "bench", package.folder, "--threads", "2", "--samples", "2", "--format", "json"
    )
    found = json.loads(out)
    assert (code, found["threads"]) == (0, 2), err
    assert [len(seconds) for seconds in found["seconds_by_process"]] == [2, 2]


@pytest.mark.usefixtures("in_this_process")
def test_a_spread_that_cannot_be_reached_takes_all_processes(call, package):
    code, out, _ = call("bench", package.folder, "--spread", "1e-9", "--format", "json")
    found = json.loads(out)
    assert (code, found["processes"], found["unreliable_reason"]) == (0, 4, "")


def test_progress_and_a_table_are_printed_for_a_person(call, package, monkeypatch):
    monkeypatch.setattr("turbo_vaed.runtime.progress._LINE_EVERY_SECONDS", 0.0)
    code, out, _ = call("bench", package.folder)
    assert code == 0
    assert "host, % 0/100  process 1, at most 4, 0 s" in out
    assert "% 25/100  process 2, at most 4" in out and "100/100  done" in out
    assert "process 1, at most 4, 1 s" in out  # the seconds go on while nothing is reported
    for fact in ("median", "peak memory", "4, 4 in 2 of 2", "random"):
        assert fact in out


def test_the_progress_of_a_phone_is_printed(call, checkout, package, tmp_path, monkeypatch):
    monkeypatch.setattr("turbo_vaed.runtime.progress._LINE_EVERY_SECONDS", 0.0)
    runner = make_phone(tmp_path, monkeypatch, SHAPE, package.io.video_shape)
    profile = {"kind": "adb", "runner": str(runner), "folder": str(tmp_path / "storage")}
    checkout({"phone": profile})
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    code, out, err = call("bench", package.folder, "--device", "phone")
    assert code == 0, err
    for percent in (0, 10, 20, 90, 100):
        assert f"{percent}/100" in out
    assert "31 to 31 °C" in out
    for printed in (out, call("list")[1], call("probe", "phone")[1]):
        assert "ANDROID_SERIAL=R5C" in printed


def test_a_program_that_fails_is_reported_as_json_too(call, package, monkeypatch):
    monkeypatch.setattr(verbs, "_TIMEOUT_SECONDS", 0.3)
    code, out, err = call("bench", package.folder, "--format", "json")
    assert code == 1 and "stopped after 0.3 s" in json.loads(out)["reason"]
    assert re.search("executorch-xnnpack/fp32 .*host", err)


def test_the_list_has_the_address_and_the_error_of_each_device(call, checkout, monkeypatch):
    runner = {"kind": "adb", "runner": "r"}
    checkout({
        "host": {"kind": "host"}, "phone": runner, "mine": {**runner, "serial": "R5C"},
        "studio": {"kind": "apple", "host": "me@studio.local"}, "odd": {"kind": "fax"},
    })  # fmt: skip
    monkeypatch.setenv("ANDROID_SERIAL", "XYZ")
    code, out, _ = call("list", "--format", "json")
    reached = {row["name"]: row["reached"] for row in json.loads(out)}
    assert code == 0
    assert (reached["host"], reached["studio"]) == ("here", "ssh me@studio.local")
    assert reached["phone"].startswith("ANDROID_SERIAL=XYZ")
    assert re.search("XYZ.*R5C", reached["mine"]) and "'fax'" in reached["odd"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "package.json"),
        (["PACKAGE", "--device", "fridge"], "'fridge'"),
        (["PACKAGE", "--latents", "none.npy"], "none.npy"),
        (["PACKAGE", "--spread", "0"], "max_spread: found 0.0, expected above 0"),
        (["PACKAGE", "--spread", "nan"], "max_spread: found nan"),
        (["PACKAGE", "--samples", "1"], "'--samples'"),
        (["PACKAGE", "--threads", "0"], "'--threads'"),
    ],
)
def test_a_mistake_is_refused_by_the_argument_that_caused_it(
    call, package, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(
        "bench", *(str(package.folder) if a == "PACKAGE" else a for a in arguments)
    )
    assert code == 2
    assert message in " ".join((out + err).replace("│", " ").split())


def test_an_invalid_gate_section_is_refused_by_its_key(call, checkout, package):
    checkout(threads=0)
    code, _, err = call("bench", package.folder)
    assert code == 2 and "defaults.gate" in err and "threads" in err
