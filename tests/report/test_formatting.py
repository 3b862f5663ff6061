"""Figures as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.report import formatting


@given(
    st.floats(1e-3, 5000), st.floats(1e-3, 5000), st.sampled_from(["share", "ratio", "dB", "MB"])
)
def test_a_figure_never_reads_as_its_limit_or_beyond_it(
    measured: float, limit: float, unit: str
) -> None:
    limit = float(f"{limit:.3g}")  # as a person would type it
    measured_text, required = (float(text.split()[0]) for text in
                    formatting.measured_and_limit(measured, limit, unit))  # fmt: skip
    if abs(measured - limit) > 1e-9 * limit:
        assert (measured_text < required) == (measured < limit) and measured_text != required
    assert required == pytest.approx(limit * (100 if unit == "share" else 1), rel=1e-9)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (formatting.percent(0.99123), "99.1 %"),
        (formatting.percent(0.0000139, 2), "< 0.01 %"),
        (formatting.percent(0.0), "0.0 %"),
        (formatting.percent(None), "unknown"),
        (formatting.percent(float("nan")), "unknown"),
        (formatting.seconds(8.44), "8.4 s"),
        (formatting.seconds(59.97), "1 min 00 s"),
        (formatting.seconds(200), "3 min 20 s"),
        (formatting.seconds(7500), "2 h 05 min"),
        (formatting.milliseconds(0.131), "131 ms"),
        (formatting.milliseconds(1.307), "1.31 s"),
        (formatting.milliseconds(12.34), "12.3 s"),
        (formatting.latency(0.0362, 0.0324, 0.0414), ("36.2 ms", "32.4 to 41.4 ms")),
        (formatting.latency(0.98, 0.9, 1.1), ("0.98 s", "0.90 to 1.10 s")),
        (formatting.size(4_310_220), "4.3 MB"),
        (formatting.size(20_123), "20.1 kB"),
        (formatting.decibel(None), "not measured"),
        (formatting.million(1_038_211), "1.04 M"),
        (formatting.measured_and_limit(None, 0.95, "share")[0], "not measured"),
        (formatting.measured_and_limit(0.949999, 0.95, "share")[0], "94.9999 %"),
        (formatting.measured_and_limit(312.0, 1500.0, "MB"), ("312 MB", "1500 MB")),
    ],
)
def test_figures(printed: object, expected: object) -> None:
    assert printed == expected


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0, "$0"), (12.345, "$12.3"), (950, "$950"), (-12_345, "-$12.3k"), (999_900, "$1M"),
     (3_400_000, "$3.4M"), (-2.5e9, "-$2.5B")],
)  # fmt: skip
def test_dollars_on_an_axis_are_short(value: float, printed: str) -> None:
    assert formatting.short_usd(value) == printed
