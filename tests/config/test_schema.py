"""params.yaml: what is refused, and what the message says; resolving and overriding."""

from __future__ import annotations

import copy
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from turbo_vaed.config import schema
from turbo_vaed.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def document():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def load(document, customer="demo"):
    return schema.parse(schema.resolve(document, customer))


def test_the_shipped_file_is_valid_for_every_customer_and_use_case(document):
    for use_case in ("education", "inspection", "critical"):
        document["customers"]["demo"]["use_case"] = use_case
        assert load(document).use_case == use_case
    assert load(document).budget.run_usd == Decimal(95)
    assert load(document).distill.stop_psnr_margin_db is None  # all planned steps, unless asked
    assert load(document).distill.stop_usd_per_tenth_db is None
    assert load(document).thresholds.needs_approval is True


def test_a_customer_overrides_any_leaf_and_no_other(document):
    before = load(document)
    document["customers"]["demo"]["distill"] = {"steps": 7}
    after = load(document)
    assert after.distill.steps == 7
    assert after.distill.batch_size == before.distill.batch_size
    assert after.clip == before.clip


def test_a_customers_own_limit_does_not_keep_the_reason_of_the_old_one(document):
    document["customers"]["demo"]["thresholds"] = {"min_psnr": 30, "min_ssim": 0.60}
    rationale = load(document).thresholds.rationale
    profile = document["use_cases"]["education"]
    said = f"demo asks for it; education asks for 22.0: {profile['rationale']['min_psnr']}"
    assert rationale["min_psnr"] == said
    assert rationale["min_ssim"] == profile["rationale"]["min_ssim"], "it is the old one"
    document["customers"]["demo"]["thresholds"]["rationale"] = {"min_psnr": "our viewers sit close"}
    assert load(document).thresholds.rationale["min_psnr"] == "our viewers sit close"


def test_no_customer_takes_a_persons_approval_away(document):
    document["customers"]["demo"] |= {"use_case": "critical", "thresholds": {"min_psnr": 35}}
    assert load(document).thresholds.needs_approval is True
    for value in (False, 0, None, "no"):
        document["customers"]["demo"]["thresholds"] = {"needs_approval": value}
        with pytest.raises(UserError, match=r"critical is never promoted without a person"):
            load(document)
    document["customers"]["demo"] |= {"use_case": "education"}
    document["customers"]["demo"]["thresholds"] = {"needs_approval": True}
    assert load(document).thresholds.needs_approval is True, "more care is allowed"


def test_money_keeps_the_digits_that_were_typed(document):
    document["customers"]["demo"]["budget"] = {"run_usd": 0.1}
    document["customers"]["demo"]["distill"] = {"stop_usd_per_tenth_db": 0.1}
    assert load(document).budget.run_usd == Decimal("0.1")
    assert load(document).distill.stop_usd_per_tenth_db == Decimal("0.1")


def test_an_assumption_keeps_its_digits_and_what_a_customer_does_not_name(document):
    document["customers"]["demo"]["roi"] = {"egress_usd_per_gb": {"likely": 0.07}}
    egress = load(document).roi.egress_usd_per_gb
    assert (egress.low, egress.likely) == (Decimal("0.02"), Decimal("0.07"))
    assert egress.source == document["defaults"]["roi"]["egress_usd_per_gb"]["source"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
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
            ["roi.devices: low 5000, likely 1", "none may be larger"],
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
def test_bad_values_are_refused_by_their_path(document, path, value, said):
    place = document["customers"]["demo"]
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    with pytest.raises(UserError) as refused:
        load(document)
    for words in said:
        assert words in str(refused.value)


@pytest.mark.parametrize("name", ["a/b", "a b", "../x", "", "Ä", "-x", "a" * 49, "A", "no", "123"])
def test_names_that_are_no_customer_names(document, name):
    with pytest.raises(UserError, match="not allowed"):
        schema.resolve(document, name)


def test_unknown_customer_is_told_how_to_be_added(document):
    with pytest.raises(UserError, match="customer add nobody"):
        schema.resolve(document, "nobody")


def test_unknown_top_level_key(document):
    document["default"] = {}
    with pytest.raises(UserError, match="unknown key 'default'"):
        schema.resolve(document, "demo")


def test_missing_section(document):
    del document["defaults"]["clip"]
    with pytest.raises(UserError, match="clip: missing"):
        load(document)


def test_file_that_is_no_yaml(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        schema.read_yaml(path)
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        schema.read_yaml(path)
    with pytest.raises(UserError, match="does not exist"):
        schema.read_yaml(tmp_path / "none.yaml")


def test_resolving_does_not_change_what_was_read(document):
    before = copy.deepcopy(document)
    document["customers"]["demo"]["distill"] = {"steps": 7}
    before["customers"]["demo"]["distill"] = {"steps": 7}
    schema.resolve(document, "demo")
    assert document == before
