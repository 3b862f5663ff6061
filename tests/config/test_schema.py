"""The four files -> params: what is refused and where it stands; defaults, overrides, origins."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests import configs
from turbo_vaed.config import load as config
from turbo_vaed.config.schema import Params, UseCase
from turbo_vaed.config.yaml_file import read_yaml
from turbo_vaed.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def document():
    return configs.read()


@pytest.fixture
def load(tmp_path):
    """The params of a customer of such a document, by its files."""

    def parsed(document, customer="demo") -> Params:
        return config.load(configs.write(tmp_path, document), customer)

    return parsed


@pytest.mark.parametrize("root", [ROOT, configs.FOLDER], ids=["this checkout", "the tests"])
def test_the_files_are_valid_for_every_customer_use_case_and_device(root):
    """Those of this checkout, too, whatever its team has made of them."""
    files = config.read(root)
    for name in files.customers:
        config.resolve(files, name).params()
    for name in files.use_cases:
        assert TypeAdapter(UseCase).validate_python(files.use_cases[name]).rationale
    for name in files.profiles:
        config.profile(files, name)


def test_a_checkout_with_a_customer_and_a_use_case_alone_has_the_built_in_defaults(
    document, load, tmp_path
):
    only = {key: document[key] for key in ("customers", "use_cases")}
    params = load(only)
    assert params.budget.run_usd == Decimal(95)
    assert params.prices.local_usd_per_hour is None, "a price that nobody gave is unknown"
    assert params.distill.steps == 500 and params.device.kind == "host"
    assert params.distill.stop_psnr_margin_db is None  # all planned steps, unless asked
    for name in ("devices.yaml", "finance.yaml"):
        (tmp_path / name).unlink()
    assert config.load(tmp_path, "demo") == params


def test_the_shipped_files_agree_with_the_built_in_defaults(document, load):
    """A team that removes a line which it never changed changes nothing."""
    found = load(document)
    for field in dataclasses.fields(Params):
        if field.name not in ("device", "thresholds", "source", "prices"):
            assert getattr(found, field.name) == field.default, field.name
    given = {"local_usd_per_hour": None, "candidates": ()}
    assert dataclasses.replace(found.prices, **given) == Params.prices


def test_a_customer_overrides_any_leaf_and_no_other(document, load):
    before = load(document)
    document["customers"]["demo"]["distill"] = {"steps": 7}
    after = load(document)
    assert after.distill.steps == 7
    assert after.distill.batch_size == before.distill.batch_size
    assert after.clip == before.clip


def test_a_customers_own_limit_replaces_the_rationale_of_the_old_one(document, load):
    document["customers"]["demo"]["thresholds"] = {"min_psnr": 30, "min_ssim": 0.60}
    rationale = load(document).thresholds.rationale
    profile = document["use_cases"]["education"]
    assert re.search("demo .*education .*22.0: ", rationale["min_psnr"])
    assert rationale["min_psnr"].endswith(profile["rationale"]["min_psnr"])
    assert rationale["min_ssim"] == profile["rationale"]["min_ssim"], "it is the old one"
    document["customers"]["demo"]["thresholds"]["rationale"] = {"min_psnr": "close viewers"}
    assert load(document).thresholds.rationale["min_psnr"] == "close viewers"


def test_no_customer_takes_a_persons_approval_away(document, load):
    document["customers"]["demo"] |= {"use_case": "critical", "thresholds": {"min_psnr": 35}}
    assert load(document).thresholds.needs_approval is True
    for value in (False, 0, None, "no"):
        document["customers"]["demo"]["thresholds"] = {"needs_approval": value}
        with pytest.raises(UserError, match=r"needs_approval .*critical"):
            load(document)
    document["customers"]["demo"] |= {"use_case": "education"}
    document["customers"]["demo"]["thresholds"] = {"needs_approval": True}
    assert load(document).thresholds.needs_approval is True, "more care is allowed"


def test_money_keeps_the_digits_that_were_typed(document, load):
    document["customers"]["demo"]["budget"] = {"run_usd": 0.1}
    document["customers"]["demo"]["distill"] = {"stop_usd_per_tenth_db": 0.1}
    assert load(document).budget.run_usd == Decimal("0.1")
    assert load(document).distill.stop_usd_per_tenth_db == Decimal("0.1")


def test_an_assumption_keeps_its_digits_and_the_defaults_of_other_keys(document, load):
    document["customers"]["demo"]["roi"] = {"egress_usd_per_gb": {"likely": 0.07}}
    egress = load(document).roi.egress_usd_per_gb
    assert (egress.low, egress.likely) == (Decimal("0.02"), Decimal("0.07"))
    assert egress.source == document["roi"]["egress_usd_per_gb"]["source"]


@pytest.mark.parametrize(
    ("path", "value", "facts"),
    [
        (("distill", "stepz"), 3, ["distill.stepz", "unknown key", "steps"]),
        (("colour",), "red", ["colour", "unknown key"]),
        (("budget", "run_usd"), 0, ["budget.run_usd", "found 0", "greater than 0"]),
        (("budget", "run_usd"), -5, ["budget.run_usd", "found -5"]),
        (("budget", "run_usd"), float("nan"), ["budget.run_usd"]),
        (("budget", "run_usd"), 1e10, ["budget.run_usd", "less than 1000000000"]),
        (("budget", "reserve_seconds"), 1e9, ["budget.reserve_seconds", "2592000"]),
        (("prices", "local_usd_per_hour"), 8000, ["local_usd_per_hour", "less than 1000"]),
        (("prices", "local_usd_per_hour"), -0.1, ["local_usd_per_hour", "0"]),
        (("prices", "bucket_usd_per_gb_month"), float("nan"), ["bucket_usd_per_gb_month"]),
        (("prices", "transfer_out_usd_per_gb"), 1e4, ["transfer_out_usd_per_gb", "1000"]),
        (("prices", "quote_hours"), 1e6, ["prices.quote_hours", "8784"]),
        (("distill", "steps"), "many", ["distill.steps", "'many'"]),
        (("distill", "steps"), 2.5, ["distill.steps", "2.5"]),
        (("distill", "batch_size"), 1, ["batch_size 1", "workers 2"]),
        (("distill", "stop_psnr_margin_db"), -0.5, ["distill.stop_psnr_margin_db", "found -0.5"]),
        (("distill", "stop_usd_per_tenth_db"), 0, ["distill.stop_usd_per_tenth_db", "found 0"]),
        (("distill", "min_workers"), 3, ["min_workers 3", "workers 2"]),
        (("distill", "perceptual"), "lpips", ["perceptual_weights", "ms-ssim need none"]),
        (("clip", "size"), 8, ["clip.size", "32"]),
        (("distill", "crop"), 4096, ["distill.crop 4096", "clip.size"]),
        (("validate", "min_side"), 16, ["validate.min_side 16", "clip.size"]),
        (("clip", "train_share"), 0.95, ["below 1"]),
        (("encode", "teacher_family"), "mystery", ["encode.teacher_family", "ltx-video"]),
        (("use_case",), "fun", ["use_case is 'fun'", "education"]),
        (
            ("roi", "devices", "likely"),
            1,
            ["roi.devices: low 5000, likely 1"],
        ),
        (("roi", "devices", "high"), -1, ["roi.devices.high", "found -1"]),
        (("roi", "devices", "high"), float("inf"), ["roi.devices.high"]),
        (("roi", "devices", "most"), 1, ["roi.devices.most: unknown key", "likely"]),
        (("roi", "devices", "source"), "", ["roi.devices.source"]),
        (("roi", "colour"), 1, ["roi.colour: unknown key", "gpu_usd_per_hour"]),
        (("roi", "device_share", "high"), 1.5, ["roi: device_share.high is 1.5", "at most 1"]),
        (("roi", "gpu_speedup", "low"), 0, ["roi: gpu_speedup.low is 0"]),
    ],
)
def test_bad_values_are_refused_by_their_path(document, load, path, value, facts):
    place = document["customers"]["demo"]
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    with pytest.raises(UserError) as refused:
        load(document)
    for fact in facts:
        assert fact in str(refused.value)


@pytest.mark.parametrize("name", ["a/b", "a b", "../x", "", "Ä", "-x", "a" * 49, "A", "no", "123"])
def test_invalid_customer_names_are_refused(document, load, name):
    with pytest.raises(UserError, match="not allowed"):
        load(document, name)


def test_an_unknown_customer_is_refused_with_the_command_to_add_it(document, load):
    with pytest.raises(UserError, match="customer add nobody"):
        load(document, "nobody")


def test_an_unknown_top_level_key_is_refused(document, tmp_path):
    configs.write(tmp_path, document)
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("default: {}\n")
    with pytest.raises(UserError, match=r"params.yaml:\d+ default: unknown key.*defaults"):
        config.load(tmp_path, "demo")


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match=r"params\.yaml .*YAML"):
        read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        read_yaml(path)
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


def test_resolving_does_not_change_what_was_read(document, tmp_path):
    document["customers"]["demo"] |= {"thresholds": {"min_psnr": 30}, "distill": {"steps": 7}}
    files = config.read(configs.write(tmp_path, document))
    before = copy.deepcopy(files.params.document), copy.deepcopy(files.policy.document)
    config.resolve(files, "demo")
    assert (files.params.document, files.policy.document) == before


FILES = {
    "params.yaml": """defaults:
  distill:
    steps: 7
customers:
  demo:
    source: data/demo
    distill: {crop: 32}
    thresholds:
      min_psnr: 30
""",
    "devices.yaml": """devices:
  host:
    kind: host
    shape: [9, 64, 64]
""",
    "finance.yaml": """prices:
  candidates:
    - &one {instance_type: a, region: r, zones: [z], speed: 1, interruptions_per_hour: 0, source: s}
    - {<<: *one, speed: 2}
""",
}


@pytest.fixture
def root(tmp_path):
    """A checkout of few lines, whose numbers the tests know."""
    configs.copy_to(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "origin"),
    [
        (("distill", "steps"), "params.yaml:3 defaults.distill.steps"),
        (("distill", "crop"), "params.yaml:7 customers.demo.distill.crop"),
        (("distill", "seed"), config.BUILT_IN),
        (("use_case",), config.BUILT_IN),
        (("thresholds", "min_psnr"), "params.yaml:9 customers.demo.thresholds.min_psnr"),
        (("device", "shape"), "devices.yaml:4 devices.host.shape"),
        (("prices", "candidates", 1, "speed"), "finance.yaml:4 prices.candidates.1.speed"),
        (("prices", "candidates", 1, "region"), "finance.yaml:3 prices.candidates.1.region"),
        (("roi", "devices", "low"), config.BUILT_IN),
    ],
)
def test_every_value_has_its_origin(root, keys, origin):
    assert config.resolve(config.read(root), "demo").origin(keys) == origin


@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        ("steps: 7", "stepz: 7", ["demo", "params.yaml:3", "defaults.distill.stepz", "steps?"]),
        ("crop: 32", "corp: 32", ["params.yaml:7", "customers.demo.distill.corp", "crop?"]),
        ("min_psnr: 30", "min_psnrs: 30", ["params.yaml:9", "demo.thresholds", "min_psnr?"]),
        ("shape: [", "shapes: [", ["devices.yaml:4", "devices.host.shapes", "shape?"]),
        ("speed: 2", "speeed: 2", ["finance.yaml:4", "prices.candidates.1.speeed", "speed?"]),
        ("steps: 7", "steps: seven", ["params.yaml:3", "defaults.distill.steps", "'seven'"]),
        ("    source: data/demo\n", "", ["params.yaml:5", "customers.demo.source", "missing"]),
        ("  distill:\n    steps: 7", "  distill: 7", ["params.yaml:2", "mapping", "found 7"]),
        ("defaults:", "devices:", ["params.yaml:1 devices", "devices.yaml", "config migrate"]),
        ("  distill:\n    steps", "  roi:\n    steps", ["params.yaml:2", "finance.yaml"]),
        (
            "  distill:\n    steps: 7",
            "  thresholds: {min_psnr: 40}",
            ["params.yaml:2", "policy.yaml"],
        ),
        ("  distill:\n    steps: 7", "  device: {shape: null}", ["params.yaml:2", "devices.yaml"]),
        ("defaults:\n  distill:\n    steps: 7", "defaults: 7", ["params.yaml:1", "mapping"]),
        ("kind: host", "kind: toaster", ["devices.yaml:2", "'toaster'", "'adb'"]),
        ("    kind: host\n", "", ["devices.yaml:2 devices.host", "'kind'", "missing"]),
        ("{crop: 32}", "{crop: 32, crop: 64}", ["params.yaml:7", "'crop'", "on line 7"]),
        ("    steps: 7", "    steps: 7\n    seed: 1\n    steps: 9", ["params.yaml:5", "on line 3"]),
        ("{crop: 32}", "{}\n    device: {kind: adb}", ["params.yaml:8", "gate.device"]),
        (
            "{crop: 32}",
            "{}\n    prices:\n      candidates:\n        - {instance_type: a}",
            ["params.yaml:10 customers.demo.prices.candidates.0.region", "missing"],
        ),
    ],
)
def test_a_mistake_is_named_by_file_line_and_nearest_key(root, old, new, places):
    (path,) = (root / name for name, text in FILES.items() if old in text)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as refused:
        config.load(root, "demo")
    assert [place for place in places if place not in str(refused.value)] == []


def test_a_customer_may_take_away_the_teams_schedule(root):
    path = root / "params.yaml"
    text = path.read_text().replace("defaults:", "defaults:\n  schedule: {cron: 0 2 * * *}", 1)
    path.write_text(text)
    assert config.load(root, "demo").schedule.cron == "0 2 * * *"
    path.write_text(text.replace("{crop: 32}", "{crop: 32}\n    schedule: null", 1))
    assert config.load(root, "demo").schedule is None


def test_of_many_duplicate_keys_the_first_are_listed(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("".join(f"k{n}: 1\n" for n in range(30)) * 2)
    with pytest.raises(UserError) as refused:
        read_yaml(path)
    *listed, last = str(refused.value).splitlines()
    assert len(listed) == 10 and "20 more" in last


def test_a_customer_overrides_its_devices_profile(root):
    configs.override(root, device={"shape": [5, 32, 32]})
    assert config.load(root, "demo").device.shape == (5, 32, 32)


def test_three_hundred_customers_are_read_within_seconds(root):
    with (root / "params.yaml").open("a") as file:
        for number in range(300):
            file.write(f"  c{number}: {{source: x, distill: {{steps: {number + 1}}}}}\n")
    start = time.process_time()
    assert config.load(root, "c299").distill.steps == 300
    assert time.process_time() - start < 1
