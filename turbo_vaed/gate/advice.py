"""What to change so that a package passes: advice for each check that does not, from the run's own
figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turbo_vaed.gate.verdict import TIMED, Check, Verdict

_QUALITY = ("psnr_retention", "psnr", "ssim", "ms_ssim", "worst_psnr", "detail_retention")
_SPEED = ("fps", "latency_ratio")
_FLAT_DB = 0.01
_FASTEST = "executorch-xnnpack/int8"
"""Among all targets that were measured (bench/results/package.json)."""


@dataclass(frozen=True, kw_only=True)
class AdviceFacts:
    """What the advice is drawn from; None and empty where it is unknown."""

    steps: int | None
    """That the student was trained for."""
    db_per_doubling: float | None
    """PSNR on the validation clips that the second half of the steps brought."""
    student: str
    """Its preset, or `auto`."""
    test_clips: int | None
    targets: Sequence[str]
    """Of `export.targets`."""
    runtimes: Sequence[str]
    """That the device has."""

    @property
    def smaller(self) -> str:
        """How to get a smaller student."""
        if self.student == "auto":
            return "a smaller student (a lower distill.student_fraction)"
        return (
            f"a smaller student than {self.student} (distill.student: auto and a lower "
            "distill.student_fraction)"
        )

    @property
    def larger(self) -> str:
        """How to get a larger one."""
        if self.student == "auto":
            return "a larger student (a higher distill.student_fraction)"
        return (
            f"a larger student than {self.student} (distill.student: auto and a higher "
            "distill.student_fraction)"
        )


def advise(verdict: Verdict, facts: AdviceFacts) -> dict[str, str]:
    """By the name of each check that did not pass, what would change it."""
    return {check.name: _advice(check, verdict, facts) for check in verdict.not_passed}


def _advice(check: Check, verdict: Verdict, facts: AdviceFacts) -> str:
    if check.result == "inconclusive":
        return _certainty(check, verdict, facts)
    if check.measured is None:
        return (
            "the package did not run to the end: look at the reason, export it again, or remove "
            f"{verdict.target} from export.targets"
        )
    if check.name in _QUALITY:
        return _better(check, facts) + _above_teacher(check, verdict)
    if check.name in _SPEED:
        return _faster(check, facts)
    return {
        "flicker_ratio": "more steps, or a perceptual loss over frames (distill.perceptual: "
        "gradient); the report's training section shows flicker between chunks",
        "parity_psnr": "the exporter is wrong: rounding in fp32 does not explain it"
        if verdict.target.endswith("/fp32")
        else "a finer precision in export.targets, such as fp32"
        + (
            "; or a higher export.min_parity_db.int8, which keeps more layers in float"
            if verdict.target.endswith("/int8")
            else ""
        ),
        "cold_start_seconds": "a smaller package loads faster: int8 or fp16 in export.targets, or "
        f"{facts.smaller}",
        "peak_memory_mb": "clips of fewer frames or pixels (clip.frames, clip.size, the device's "
        "shape), decoded in windows: docs/on-device.md",
        "package_mb": f"{_times(check)} too large: int8 is a quarter and fp16 half of fp32 "
        f"(export.targets); otherwise {facts.smaller}",
    }[check.name]


def _certainty(check: Check, verdict: Verdict, facts: AdviceFacts) -> str:
    if check.measured is None:
        return "it was not measured: use a device that reports it"
    if check.name in TIMED:
        if any(one.name not in TIMED for one in verdict.not_passed):
            return "it is measured again with the package that the other checks need"
        return (
            f"where it is unreliable, turbo-vaed poc {verdict.customer} measures again: run it "
            "when the machine is idle (gate.max_background_cpu_share is the limit); where its "
            "interval is wide, raise gate.max_samples"
        )
    if check.margin is not None and check.margin < 0 and check.name in _QUALITY:
        # A narrower interval around a value on the wrong side would make it a failure.
        return _better(check, facts) + _above_teacher(check, verdict)
    clips = "" if facts.test_clips is None else f" than {facts.test_clips}"
    return (
        f"more test clips{clips} (clip.clips_per_video, more videos, or a smaller "
        "clip.train_share) narrow the interval, with the square root of their number; a better "
        "student clears the limit"
    )


def _above_teacher(check: Check, verdict: Verdict) -> str:
    """A note where the limit is above the teacher's own PSNR, which no student can be expected to
    reach; empty otherwise."""
    retention = next(one.measured for one in verdict.checks if one.name == "psnr_retention")
    if check.name != "psnr" or check.measured is None or not retention:
        return ""
    teacher = check.measured / retention
    if teacher >= check.limit:
        return ""
    return (
        f"; the limit is above the teacher's own {teacher:.2f} dB: lower thresholds.min_psnr, or "
        "use a better teacher"
    )


def _better(check: Check, facts: AdviceFacts) -> str:
    assert check.margin is not None
    amount = f"{abs(check.margin):.3g} {check.unit}".replace(" share", "").rstrip()
    short = f"{amount} short"
    if check.name in ("psnr", "worst_psnr") and facts.db_per_doubling and facts.steps:
        gain = facts.db_per_doubling
        doublings = -check.margin / gain if gain > _FLAT_DB else math.inf
        if doublings <= 3:
            steps = round(facts.steps * 2**doublings, -2)
            return (
                f"{short}; the second half of {facts.steps} steps brought {gain:.2f} dB, so "
                f"about {steps:,.0f} steps (distill.steps) would be enough"
            )
        return (
            f"{short}, and twice the steps bring only {max(gain, 0.0):.2f} dB: {facts.larger}, or "
            "a better teacher"
        )
    return (
        f"{short}: more steps (distill.steps), {facts.larger}, or a perceptual loss "
        "(distill.perceptual)"
    )


def _faster(check: Check, facts: AdviceFacts) -> str:
    hint = f"{_times(check)} too slow: "
    runtime, _, _ = _FASTEST.partition("/")
    if runtime in facts.runtimes and _FASTEST not in facts.targets:
        return f"{hint}add {_FASTEST} to export.targets; otherwise {facts.smaller}"
    return f"{hint}{facts.smaller}, or fewer pixels (clip.size)"


def _times(check: Check) -> str:
    assert check.measured is not None
    low, high = sorted((check.measured, check.limit))
    return f"{high / low:.1f} times" if low > 0 else "far"
