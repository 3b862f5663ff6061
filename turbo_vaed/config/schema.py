"""params.yaml as typed, validated, frozen dataclasses.

`defaults` holds a section per stage, `use_cases` the gate's thresholds, and a customer overrides
any leaf of the defaults. Unknown keys and impossible values are refused with the key's path, what
was found and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from turbo_vaed.config.devices import DeviceProfile, parse_profile
from turbo_vaed.config.money import BudgetParams as BudgetParams
from turbo_vaed.config.money import CandidateParams as CandidateParams
from turbo_vaed.config.money import PriceParams as PriceParams
from turbo_vaed.config.roi import Assumption as Assumption
from turbo_vaed.config.roi import RoiParams as RoiParams
from turbo_vaed.config.types import STRICT, Count, Positive, PositiveMoney, Share
from turbo_vaed.errors import UserError

CUSTOMER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValidateParams:
    timeout_seconds: Positive
    min_seconds: Positive
    min_side: Count
    max_black_share: Share
    max_frozen_share: Share
    min_good_videos: Count
    min_good_share: Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipParams:
    frames: Count
    size: Annotated[int, Field(ge=32, strict=True)]
    """Side of a clip in pixels; SSIM needs some."""
    clips_per_video: Count
    train_share: Annotated[float, Field(gt=0, lt=1)]
    val_share: Annotated[float, Field(gt=0, lt=1)]
    seed: int


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
    teacher_family: TeacherFamily
    teacher_weights: str
    batch_size: Count
    tile: Count | None
    """Pixels: train clips are encoded in squares of this side; None for whole ones."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillParams:
    student: str
    """A preset of turbo_vaed.models, or `auto`: derived from the run's teacher."""
    start: Literal["linear", "random"]
    steps: Count
    batch_size: Count
    """Clips of a step over all workers."""
    micro_batch: Count
    """At most so many clips at once in a worker; gradients of the rest are accumulated."""
    crop: Count
    workers: Count
    """At most."""
    min_workers: Count
    optimizer: Literal["adamw", "muon"]
    learning_rate: Positive
    betas: tuple[Share, Share]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_share: Share
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    weight_source: Annotated[float, Field(ge=0)]
    weight_teacher: Annotated[float, Field(ge=0)]
    perceptual: Literal["none", "gradient", "ms-ssim", "lpips"]
    perceptual_weights: str | None
    """The file of LPIPS' weights, below the checkout or absolute; `hub` fetches 530 MB."""
    weight_perceptual: Annotated[float, Field(ge=0)]
    weight_feature: Annotated[float, Field(ge=0)]
    weight_adversarial: Annotated[float, Field(ge=0)]
    adversarial_start: Annotated[int, Field(ge=0)]
    teacher_targets: Literal["auto", "cache", "recompute"]
    compile: Literal["auto", "on", "off"]
    checkpoint_every: Count | Literal["auto"]
    """Steps; auto: seconds by Young and Daly, from what the run has seen of saves and losses."""
    keep_checkpoints: Count
    validate_every: Count
    precision: Literal["bf16", "fp32"]
    seed: Annotated[int, Field(ge=0)]
    student_fraction: Annotated[float, Field(gt=0, le=1)] = 0.175
    """Of the parameters of the teacher's decoder, where the student is `auto`."""
    stop_psnr_margin_db: Annotated[float, Field(ge=0)] | None = None
    """dB above what the gate asks of PSNR at which the student is good enough, where it has the
    rest of the quality that the gate asks for, too; None: never."""
    stop_usd_per_tenth_db: PositiveMoney | None = None
    """USD that another 0.1 dB may cost before the student is good enough; None: whatever."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateParams:
    batch_size: Count
    worst_share: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ParityParams:
    """The least PSNR, in dB, of what a package puts out against PyTorch, by its precision."""

    fp32: Positive
    fp16: Positive
    int8: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportParams:
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    """What is made of the student, `RUNTIME/PRECISION` each; the gate ships one of them."""
    shapes: tuple[tuple[Count, Count, Count], ...] = ()
    """(frames, height, width) of the video that further packages of each target are for."""
    calibration_clips: Count
    """Training clips whose latents int8 is calibrated on."""
    verify_clips: Count
    """Test clips at most that every package is run on and compared with PyTorch."""
    min_parity_db: ParityParams


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GateParams:
    device: str
    """A name in `devices`: where packages are measured."""
    threads: Count
    max_warmup: Annotated[int, Field(ge=0)]
    """Runs before the first sample: fewer where they are steady before."""
    min_samples: Count
    max_samples: Count
    """Fewer where the interval of the median is narrow enough before."""
    max_spread: Positive
    """Width of that interval over the median, above which is measured again."""
    refused_spread: Positive
    """Width above which times are no basis for a verdict, where that did not help."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    max_background_cpu_share: Share
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
    """Of what a device puts out, against PyTorch; `export.min_parity_db` counts where it is more,
    which is about one precision."""
    min_fps: Positive
    max_cold_start_seconds: Positive
    max_peak_memory_mb: Positive
    max_package_mb: Positive
    max_latency_ratio: Positive
    needs_approval: bool
    choose: Literal["fastest", "best"]
    """Of the packages that pass: the fastest one, or the one of the best PSNR."""
    rationale: Mapping[str, Annotated[str, Field(min_length=1)]]
    """Why each limit is what it is; shown beside what was measured."""

    def __post_init__(self) -> None:
        limits = {
            field.name
            for field in dataclasses.fields(self)
            if field.name.startswith(("min_", "max_"))
        }
        if missing := sorted(limits - set(self.rationale)):
            raise ValueError(f"because: no reason for {', '.join(missing)}; say why in a sentence")
        if unknown := sorted(set(self.rationale) - limits):
            raise ValueError(f"because: {', '.join(unknown)}: no such limit")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Params:
    """Everything that one customer's run is tuned by."""

    source: str
    use_case: str
    budget: BudgetParams
    prices: PriceParams
    validate: ValidateParams
    clip: ClipParams
    encode: EncodeParams
    distill: DistillParams
    evaluate: EvaluateParams
    export: ExportParams
    gate: GateParams
    roi: RoiParams
    device: Annotated[DeviceProfile, BeforeValidator(parse_profile)]
    """The profile that `gate.device` names."""
    thresholds: UseCase
    """The profile that `use_case` names."""

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


_PARAMS = TypeAdapter(Params)


def check_customer_name(name: str) -> str:
    """`name`, or a UserError that says what a customer's name may be."""
    if not CUSTOMER_NAME.fullmatch(name) or not isinstance(yaml.safe_load(name), str):
        raise UserError(
            f"customer name {name!r} is not allowed: use 1 to 48 of a-z, 0-9, '-' and '_', "
            "beginning with a letter or digit, and no word that YAML reads as something else"
        )
    return name


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a UserError that names the file."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping, found {type(document).__name__}")
    return document


def resolve(document: Mapping[str, Any], customer: str) -> dict[str, Any]:
    """Defaults, the customer's overrides and its use case, merged into one plain mapping.

    Raises:
        UserError: no such customer or use case, or an unknown top-level key.
    """
    check_customer_name(customer)
    allowed = ("defaults", "devices", "use_cases", "customers")
    for key in document:
        if key not in allowed:
            raise UserError(f"params.yaml: unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key in allowed:
        if not isinstance(document.get(key), Mapping):
            raise UserError(f"params.yaml: {key} must be a mapping")
    customers = document["customers"]
    if customer not in customers:
        raise UserError(
            f"unknown customer {customer!r}; known: {', '.join(sorted(customers)) or 'none'}; "
            f"add it with: turbo-vaed customer add {customer} --source DIR --use-case USE"
        )
    own = customers[customer]
    if not isinstance(own, Mapping):
        raise UserError(f"params.yaml: customers.{customer} must be a mapping")
    merged = _merge(document["defaults"], own, f"customers.{customer}")
    use_cases = document["use_cases"]
    use_case = merged.get("use_case")
    if use_case not in use_cases:
        raise UserError(
            f"params.yaml: customers.{customer}.use_case is {use_case!r}; "
            f"allowed: {', '.join(use_cases)}"
        )
    thresholds = _thresholds(use_cases[use_case], merged.pop("thresholds", {}), customer, use_case)
    device = merged.get("gate", {}).get("device")
    return {
        **merged,
        "device": device_of(document, device, f"customers.{customer}.gate.device"),
        "thresholds": thresholds,
    }


def _thresholds(profile: Any, own: Any, customer: str, use_case: object) -> dict[str, Any]:
    """A use case with a customer's own limits; the reason of an old limit is none of a new one.

    Raises:
        UserError: it would be promoted without the person whom the use case asks for.
    """
    where = f"customers.{customer}.thresholds"
    found = _merge(profile, own, where)
    if profile.get("needs_approval") is True and found["needs_approval"] is not True:
        raise UserError(
            f"params.yaml: {where}.needs_approval is {found['needs_approval']!r}; {use_case} is "
            "never promoted without a person's approval: leave it out, or take another use_case"
        )
    reasons, given = dict(found["rationale"]), own.get("rationale", {})
    for name in reasons.keys() & own.keys() - given.keys():
        if own[name] != profile[name]:
            reasons[name] = (
                f"{customer} asks for it; {use_case} asks for {profile[name]}: {reasons[name]}"
            )
    return {**found, "rationale": reasons}


def device_of(document: Mapping[str, Any], name: object, where: str) -> dict[str, Any]:
    """The profile of a device in params.yaml, with its name.

    Raises:
        UserError: there is none of that name.
    """
    profiles = document.get("devices")
    if not isinstance(profiles, Mapping) or not isinstance(profiles.get(name), Mapping):
        known = ", ".join(profiles) if isinstance(profiles, Mapping) else "none"
        raise UserError(
            f"params.yaml: {where}: no profile of the device {name!r}; devices has: {known}"
        )
    return {**profiles[name], "name": name}


def parse(resolved: Mapping[str, Any], where: str = "params.yaml") -> Params:
    """Typed params of a resolved mapping.

    Raises:
        UserError: with a line per key: its path, what was found, what is allowed.
    """
    try:
        return _PARAMS.validate_python(dict(resolved))
    except ValidationError as error:
        raise UserError(
            f"{where} is not valid:\n" + "\n".join(_explain(e) for e in error.errors())
        ) from None


def load(path: Path, customer: str) -> Params:
    """The params of one customer from params.yaml."""
    return parse(resolve(read_yaml(path), customer), f"{path.name} (customer {customer})")


def _merge(base: Any, over: Any, path: str) -> dict[str, Any]:
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        raise UserError(f"params.yaml: {path} must be a mapping, found {over!r}")
    merged = dict(base)
    for key, value in over.items():
        if isinstance(base.get(key), Mapping):
            merged[key] = _merge(base[key], value, f"{path}.{key}")
        else:
            merged[key] = value
    return merged


def _explain(error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    path = ".".join(loc) or "params"
    if error["type"] == "unexpected_keyword_argument":
        owner: Any = Params
        for part in loc[:-1]:
            owner = next(f.type for f in dataclasses.fields(owner) if f.name == part)
            owner = globals()[owner] if isinstance(owner, str) else owner
        allowed = ", ".join(f.name for f in dataclasses.fields(owner))
        return f"  {path}: unknown key; allowed: {allowed}"
    if error["type"] in ("missing", "missing_argument"):
        return f"  {path}: missing"
    if error["type"] == "value_error":
        where = f"{path}: " if loc else ""
        return f"  {where}{error['msg'].removeprefix('Value error, ')}"
    return f"  {path}: found {error['input']!r}; {error['msg'].lower()}"
