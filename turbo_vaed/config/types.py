"""Kinds of values that params are made of."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Later:
    """Of a field that was added when stages had been hashed without it: where it has its default,
    no section has it, and so no stage is run again for it. See `turbo_vaed.config.sections`."""


LATER = _Later()

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
# YAML numbers arrive as float: str() keeps the digits that the person typed.
Money = Annotated[Decimal, BeforeValidator(lambda v: str(v) if isinstance(v, float) else v)]
PositiveMoney = Annotated[Money, Field(gt=0, lt=10**9)]
Price = Annotated[Money, Field(ge=0, lt=1000)]
"""USD per hour of a machine, per GB and month, per GB: more is a mistake of the unit."""
Hours = Annotated[float, Field(gt=0, le=24 * 366)]
