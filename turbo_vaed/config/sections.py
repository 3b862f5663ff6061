"""Sections of a customer's params: what each DVC stage reads, and nothing else.

work/NAME/params/STAGE.yaml holds the values that determine a stage's output, and digests of its
other inputs; DVC hashes it. work/NAME/params/costs.yaml holds prices and the budgets that
affect no output: no DVC stage depends on it. All are written when a run begins, so an edit of the
root files takes effect in the next run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter

from turbo_vaed.config.explain import dataclasses_in
from turbo_vaed.config.load import plain, scalars
from turbo_vaed.config.schema import Params
from turbo_vaed.config.types import LATER
from turbo_vaed.config.yaml_file import read_yaml
from turbo_vaed.errors import CorruptFile, UserError

T = TypeVar("T")
COSTS = "costs"
"""Name of the file of prices and budgets."""
_QUALITY = (
    "min_psnr",
    "min_psnr_retention",
    "min_ssim",
    "min_ms_ssim",
    "min_worst_psnr",
    "max_flicker",
    "min_detail_retention",
)
_PAID = {
    "encode": ("device", "export"),
    "distill": ("device", "export"),
    "gate": ("device",),
}
"""What else of costs.yaml a stage may read: what measuring packages later will cost, or costs."""
_NO_DEFAULT = object()
_SHAPE = {"clip": ("frames", "size")}
_TEACHER = {"encode": ("teacher_family", "teacher_weights")}


def sections(params: Params) -> dict[str, dict[str, Any]]:
    """The values that each stage reads, by stage, and those of `COSTS`."""
    given = {
        field.name: scalars(_without_later(getattr(params, field.name)))
        for field in dataclasses.fields(params)
    }

    def pick(*whole: str, **parts: tuple[str, ...]) -> dict[str, Any]:
        found = {name: given[name] for name in whole}
        return found | {name: {k: given[name][k] for k in keys} for name, keys in parts.items()}

    distill = pick(
        "distill",
        encode=("teacher_family", "teacher_weights", "batch_size", "tile"),
        budget=("run_usd", "reserve_seconds"),  # they decide how many steps are done
        **_SHAPE,
    )
    if params.distill.stop_psnr_margin_db is not None:  # else the gate's limits do not matter
        distill |= pick(thresholds=_QUALITY, evaluate=("worst_share",))
    gate = pick("gate", "use_case", "thresholds", export=("targets", "min_parity_db"), **_TEACHER)
    gate["device"] = {k: v for k, v in given["device"].items() if not k.startswith("usd_")}
    return {
        "validate": pick("validate", "source"),
        "clip": pick("clip", "source"),
        "encode": pick("encode"),
        "distill": distill,
        "evaluate": pick("evaluate"),
        "export": pick("export", device=("name", "shape"), **_SHAPE),
        "gate": gate,
        COSTS: pick("budget", "prices", "device", export=("targets",)),
    }


def read_section(folder: Path, stage: str, customer: str) -> Params:
    """The params of a stage; reading any other raises AttributeError.

    Args:
        folder: work/NAME/params.

    Raises:
        UserError: stage `params` has not been run.
        CorruptFile: a file is not what that stage writes.
    """
    remedy = f"run turbo-vaed stage params {customer}, which dvc repro does by itself"
    own, costs = folder / f"{stage}.yaml", folder / f"{COSTS}.yaml"
    if not (own.is_file() and costs.is_file()):
        raise UserError(f"{own} or {costs.name} does not exist: {remedy}")
    try:
        section, paid = read_yaml(own), read_yaml(costs)
        values = {
            key: paid[key] for key in paid if key in ("budget", "prices", *_PAID.get(stage, ()))
        }
        for key, value in section.items():
            if key != "stage_version" and not key.endswith("_sha256"):
                values[key] = (
                    {**values.get(key, {}), **value} if isinstance(value, Mapping) else value
                )
        return partial(Params, values)
    except (UserError, ValueError, TypeError, KeyError) as error:
        raise CorruptFile(f"{own} is no section of this version ({error}): {remedy}") from error


def partial(kind: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a dataclass that has these fields alone, each validated.

    Raises:
        ValueError: a value is not possible.
        KeyError: the dataclass has no such field.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    owner: Any = kind
    if names - later_fields(owner).keys() <= values.keys():
        return TypeAdapter(kind).validate_python(values)
    hints = get_type_hints(kind, include_extras=True)
    absent = {name: _Absent(kind.__name__, name) for name in names - values.keys()}
    found: T = object.__new__(type(kind.__name__, (kind,), absent))
    for name, value in values.items():
        object.__setattr__(found, name, _field(hints[name], value))
    return found


@functools.cache
def later_fields(kind: Any) -> dict[str, Any]:
    """Fields of a dataclass that are marked as `LATER`, and their defaults."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if LATER in getattr(hints[field.name], "__metadata__", ())
    }


def _without_later(value: Any) -> Any:
    """A dataclass as a mapping, without those of its later fields that have their defaults."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return plain(value)
    later = later_fields(type(value))
    return {
        field.name: plain(found)
        for field in dataclasses.fields(value)
        if (found := getattr(value, field.name)) != later.get(field.name, _NO_DEFAULT)
    }


class _Absent:
    """In place of a field that is not in a stage's section; its default must not stand in."""

    def __init__(self, owner: str, name: str) -> None:
        self.text = f"{owner}.{name} is not in the section of this stage, which reads nothing else"

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(self.text)


def _field(hint: Any, value: Any) -> Any:
    kinds = dataclasses_in(hint) if isinstance(value, Mapping) else []
    if not kinds:
        return TypeAdapter(hint).validate_python(value)
    named = [k for k in kinds if value.get("kind") in get_args(get_type_hints(k).get("kind"))]
    return partial((named or kinds)[0], value)
