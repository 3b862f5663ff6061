"""`Params`: everything that one customer's run is tuned by, typed, validated and frozen.

What no file says is the default here, so that a checkout goes on working when a key is added.
`turbo_vaed.config.load` reads the files.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import zoneinfo
from collections.abc import Mapping
from typing import Annotated, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from turbo_vaed.config.devices import DeviceProfile
from turbo_vaed.config.money import BudgetParams as BudgetParams
from turbo_vaed.config.money import CandidateParams as CandidateParams
from turbo_vaed.config.money import PriceParams as PriceParams
from turbo_vaed.config.roi import Assumption as Assumption
from turbo_vaed.config.roi import RoiParams as RoiParams
from turbo_vaed.config.types import LATER, STRICT, Count, Hours, Positive, PositiveMoney, Share
from turbo_vaed.errors import UserError

CUSTOMER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidateParams:
    timeout_seconds: Positive = 60.0
    min_seconds: Positive = 1.0
    min_side: Count = 128
    max_black_share: Share = 0.5
    max_frozen_share: Share = 0.9
    min_good_videos: Count = 1
    min_good_share: Share = 0.5


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipParams:
    frames: Count = 9
    size: Annotated[int, Field(ge=32, strict=True)] = 128
    """Side of a clip in pixels; SSIM needs some."""
    clips_per_video: Count = 24
    train_share: Annotated[float, Field(gt=0, lt=1)] = 0.80
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.10
    seed: int = 7


TeacherFamily = Literal[
    "ltx-video",
    "hunyuan-video",
    "cogvideox",
    "wan-2.1",
    "wan-2.2",
    "hunyuan-video-1.5",
    "ltx-2",
    "mochi",
    "cosmos",
    "dc-ae-video",
]
"""Those of `turbo_vaed.models.teachers.FAMILIES`, named here because that import costs seconds."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EncodeParams:
    teacher_family: TeacherFamily = "ltx-video"
    teacher_weights: str = "assets/teachers/tiny-ltx"
    batch_size: Count = 4
    tile: Count | None = 64
    """Pixels: train clips are encoded in squares of this side; None for whole ones."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillParams:
    student: str = "tiny-ltx"
    """A preset of turbo_vaed.models, or `auto`: derived from the run's teacher."""
    start: Literal["linear", "random"] = "linear"
    steps: Count = 500
    batch_size: Count = 4
    """Clips of a step over all workers."""
    micro_batch: Count = 4
    """At most so many clips at once in a worker; gradients of the rest are accumulated."""
    crop: Count = 64
    workers: Count = 2
    """At most."""
    min_workers: Count = 1
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: Positive = 5.0e-4
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 1.0e-4
    warmup_share: Share = 0.05
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_source: Annotated[float, Field(ge=0)] = 1.0
    weight_teacher: Annotated[float, Field(ge=0)] = 0.25
    perceptual: Literal["none", "gradient", "ms-ssim", "lpips"] = "none"
    perceptual_weights: str | None = None
    """The file of LPIPS' weights, below the checkout or absolute; `hub` fetches 530 MB."""
    weight_perceptual: Annotated[float, Field(ge=0)] = 1.0
    weight_feature: Annotated[float, Field(ge=0)] = 0.0
    weight_adversarial: Annotated[float, Field(ge=0)] = 0.0
    adversarial_start: Annotated[int, Field(ge=0)] = 0
    teacher_targets: Literal["auto", "cache", "recompute"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_every: Count | Literal["auto"] = "auto"
    """Steps; auto: seconds by Young and Daly, from what the run has seen of saves and losses."""
    keep_checkpoints: Count = 3
    validate_every: Count = 100
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Annotated[int, Field(ge=0)] = 11
    student_fraction: Annotated[float, Field(gt=0, le=1), LATER] = 0.175
    """Of the parameters of the teacher's decoder, where the student is `auto`."""
    stop_psnr_margin_db: Annotated[Annotated[float, Field(ge=0)] | None, LATER] = None
    """dB above what the gate asks of PSNR at which the student is good enough, where it has the
    rest of the quality that the gate asks for, too; None: never."""
    stop_usd_per_tenth_db: Annotated[PositiveMoney | None, LATER] = None
    """USD that another 0.1 dB may cost before the student is good enough; None: whatever."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateParams:
    batch_size: Count = 2
    worst_share: Annotated[float, Field(gt=0, le=1)] = 0.05


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParityParams:
    """The least PSNR, in dB, of a package's output against PyTorch's, by its precision."""

    fp32: Positive = 80.0
    fp16: Positive = 45.0
    int8: Positive = 40.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportParams:
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "executorch-xnnpack/fp32",
        "executorch-xnnpack/int8",
    )
    """What is made of the student, `RUNTIME/PRECISION` each; the gate ships one of them."""
    shapes: Annotated[tuple[tuple[Count, Count, Count], ...], LATER] = ()
    """(frames, height, width) of the video that further packages of each target are for."""
    calibration_clips: Count = 8
    """Training clips whose latents int8 is calibrated on."""
    verify_clips: Count = 4
    """Test clips at most that every package is run on and compared with PyTorch."""
    min_parity_db: ParityParams = ParityParams()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GateParams:
    device: str = "host"
    """A name in `devices`: where packages are measured."""
    threads: Count = 1
    max_warmup: Annotated[int, Field(ge=0)] = 20
    """Runs before the first sample: fewer where they are steady before."""
    min_samples: Count = 10
    max_samples: Count = 60
    """Fewer where the interval of the median is narrow enough before."""
    max_spread: Positive = 0.10
    """Width of that interval over the median, above which is measured again."""
    refused_spread: Positive = 1.0
    """Width above which times are no basis for a verdict, where that did not help."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    max_background_cpu_share: Share = 0.25
    """Of all processors' time: where other processes take more, times are no basis either."""

    def __post_init__(self) -> None:
        if self.max_samples < self.min_samples:
            raise ValueError(
                f"max_samples {self.max_samples} is below min_samples {self.min_samples}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UseCase:
    """Thresholds of one use case; dB, shares of 1, seconds, MB (1e6 bytes)."""

    min_psnr_retention: Annotated[float, Field(gt=0)]
    min_psnr: Positive
    min_ssim: Annotated[float, Field(ge=-1, le=1)]
    min_ms_ssim: Annotated[float, Field(ge=-1, le=1)]
    min_worst_psnr: Positive
    max_flicker: Positive
    """Times the teacher's own `turbo_vaed.metrics.flicker`."""
    min_detail_retention: Annotated[float, Field(ge=-1, le=1)]
    """Of the teacher's `turbo_vaed.metrics.detail`."""
    min_parity: Positive
    """PSNR, in dB, of a device's output against PyTorch's; `export.min_parity_db` of the package's
    precision applies instead where it is higher."""
    min_fps: Positive
    max_cold_start_seconds: Positive
    max_peak_memory_mb: Positive
    max_package_mb: Positive
    max_latency_ratio: Positive
    needs_approval: bool
    choose: Literal["fastest", "best"]
    """Of the packages that pass: the fastest one, or the one of the best PSNR."""
    rationale: Mapping[str, Annotated[str, Field(min_length=1)]]
    """Why each limit is what it is; shown next to what was measured."""

    def __post_init__(self) -> None:
        limits = {
            field.name
            for field in dataclasses.fields(self)
            if field.name.startswith(("min_", "max_"))
        }
        if missing := sorted(limits - set(self.rationale)):
            raise ValueError(f"rationale: no reason for {', '.join(missing)}; add a sentence")
        if unknown := sorted(set(self.rationale) - limits):
            raise ValueError(f"rationale: {', '.join(unknown)}: no such limit")


@functools.cache
def _timezones() -> frozenset[str]:
    """All of the tz database: reading their names takes milliseconds, for each customer."""
    return frozenset(zoneinfo.available_timezones())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScheduleParams:
    """When a team's Prefect runs a customer's PoC."""

    cron: Annotated[str, Field(pattern=r"^(H|[\d*,/-]+)( [\w*,/#-]+){4}$")] = "H 2 * * *"
    """Minute, hour, day, month, day of the week. `H` is a minute of the customer's own, so that not
    all begin at once."""
    timezone: str = "UTC"
    """As in the tz database: Europe/Berlin."""
    max_late_hours: Hours = 12.0
    """A run that could not begin for longer than this is skipped."""

    def __post_init__(self) -> None:
        if self.timezone not in _timezones():
            raise ValueError(
                f"schedule.timezone {self.timezone!r} is not in the tz database; "
                "expected for one Europe/Berlin"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """Everything that one customer's run is tuned by."""

    source: str
    use_case: str = "education"
    budget: BudgetParams = BudgetParams()
    prices: PriceParams = PriceParams()
    validate: ValidateParams = ValidateParams()
    clip: ClipParams = ClipParams()
    encode: EncodeParams = EncodeParams()
    distill: DistillParams = DistillParams()
    evaluate: EvaluateParams = EvaluateParams()
    export: ExportParams = ExportParams()
    gate: GateParams = GateParams()
    roi: RoiParams = RoiParams()
    schedule: ScheduleParams | None = None
    """None: nobody but a person starts its runs."""
    device: Annotated[DeviceProfile, Field(discriminator="kind")]
    """The profile that `gate.device` names in devices.yaml."""
    thresholds: UseCase
    """What `use_case` demands in policy.yaml, and the customer's own limits."""

    def __post_init__(self) -> None:
        if self.clip.train_share + self.clip.val_share >= 1:
            raise ValueError(
                f"clip.train_share + clip.val_share is "
                f"{self.clip.train_share + self.clip.val_share:g}; "
                "it must be below 1, what is left is the test split"
            )
        if not self.distill.min_workers <= self.distill.workers <= self.distill.batch_size:
            raise ValueError(
                f"distill.min_workers {self.distill.min_workers}, workers {self.distill.workers} "
                f"and batch_size {self.distill.batch_size}: none may be larger than the next, "
                "every worker has at least one clip of a step"
            )
        if self.distill.perceptual == "lpips" and not self.distill.perceptual_weights:
            raise ValueError(
                "distill.perceptual is lpips, and distill.perceptual_weights names no file; "
                "turbo_vaed.metrics.lpips says how to make it, hub fetches 530 MB, gradient and "
                "ms-ssim need none"
            )
        if self.distill.crop > self.clip.size:
            raise ValueError(
                f"distill.crop {self.distill.crop} is larger than clip.size {self.clip.size}"
            )
        if self.validate.min_side < self.clip.size:
            raise ValueError(
                f"validate.min_side {self.validate.min_side} is smaller than clip.size "
                f"{self.clip.size}: a video that passes could not hold a crop"
            )


def check_customer_name(name: object) -> str:
    """`name`, or a UserError that says what a customer's name may be."""
    if (
        not isinstance(name, str)
        or not CUSTOMER_NAME.fullmatch(name)
        or not isinstance(yaml.safe_load(name), str)
    ):
        raise UserError(
            f"customer name {name!r} is not allowed: use 1 to 48 of a-z, 0-9, '-' and '_', "
            "beginning with a letter or digit, and not a word that YAML reads as another type "
            "(yes, null, 123)"
        )
    return name
