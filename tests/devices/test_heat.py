"""The temperatures that Android reports, in the format of AOSP's ThermalManagerService."""

import pytest

from turbo_vaed.devices._heat import MARK, Heat, read_heat

BATTERY = "Current Battery Service state:\n  level: 87\n  temperature: 312\n"


def thermal(*sensors, status=0, limits=""):
    lines = [f"\tTemperature{{{sensor}}}" for sensor in sensors]
    return "\n".join([
        "IsStatusOverride: false", f"Thermal Status: {status}", "Cached temperatures:",
        "\tTemperature{mValue=99.0, mType=3, mName=skin, mStatus=4}", "HAL Ready: true",
        "Current temperatures from HAL:", *lines, "Current cooling devices from HAL:",
        "\tCoolingDevice{mValue=1000, mType=2, mName=cpu}",
        "Temperature static thresholds from HAL:", limits, BATTERY,
    ])  # fmt: skip


def reading(*looks):
    return read_heat("".join(f"{MARK}\n{look}\n" for look in looks))


def sensor(value, kind=3, name="skin", status=0):
    return f"mValue={value}, mType={kind}, mName={name}, mStatus={status}"


def limit(hot, kind=3, name="skin"):
    return (
        f"\tTemperatureThreshold{{mType={kind}, mName={name}, mHotThrottlingThresholds=[{hot}], "
        "mColdThrottlingThresholds=[NaN, NaN, NaN, NaN, NaN, NaN, NaN]}"
    )


def test_the_temperature_span_is_that_of_the_hottest_sensor():
    found = reading(*(thermal(sensor(c), sensor(c - 5, 0, "cpu")) for c in (30.5, 41.0, 38.25)))
    assert found == Heat(
        temperature_celsius=38.25, coolest_celsius=30.5, hottest_celsius=41.0, throttled=False
    )


@pytest.mark.parametrize(
    "other",
    [
        sensor(100, 8, "charge"),
        sensor(4200, 6, "volts"),
        sensor(900, -1, "x"),
        sensor("NaN"),
        sensor(0.0),
    ],
)
def test_values_that_are_no_temperature_are_left_out(other):
    assert reading(thermal(sensor(30), other)).hottest_celsius == 30


def test_without_sensors_the_batterys_temperature_counts():
    for none in ((), (sensor(0.0),)):
        assert reading(thermal(*none)).temperature_celsius == 31.2
    assert reading(f"Can't find service: thermalservice\n{BATTERY}") == Heat(
        temperature_celsius=31.2, coolest_celsius=31.2, hottest_celsius=31.2, throttled=None
    )


@pytest.mark.parametrize("text", ["", "garbage", f"{MARK}\n", f"{MARK}\ngarbage{{"])
def test_a_phone_that_reports_no_heat_has_none(text):
    assert read_heat(text) == Heat(
        temperature_celsius=None, coolest_celsius=None, hottest_celsius=None, throttled=None
    )


@pytest.mark.parametrize(
    ("looks", "throttled"),
    [
        ([thermal(sensor(30)), thermal(sensor(40), status=1), thermal(sensor(35))], True),
        ([thermal(sensor(39.9), limits=limit("35.0, 37.0, 40.0, 45.0, NaN, NaN, NaN"))], False),
        ([thermal(sensor(40.0), limits=limit("35.0, 37.0, 40.0, 45.0, NaN, NaN, NaN"))], True),
        ([thermal(sensor(90, 0, "cpu"), limits=limit("NaN, NaN, NaN, 95.0", 0, "cpu"))], False),
        ([thermal(sensor(60, 0, "cpu"), limits=limit("NaN, NaN, 50.0, 55.0", 3, "cpu"))], False),
        ([thermal(sensor(40), limits=limit("NaN, 1"))], False),
        ([thermal(sensor(40, status=1))], False),
        ([thermal(sensor(40, status=2))], True),
    ],
)
def test_throttling_is_known_by_the_status_or_by_the_makers_thresholds(looks, throttled):
    assert reading(*looks).throttled is throttled
