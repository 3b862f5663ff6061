"""What was read of a machine's prices, on disk: a file per machine, whole or not at all."""

from __future__ import annotations

import bisect
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from turbo_vaed.costs.money import plain
from turbo_vaed.costs.price_source import OLD_PRICE
from turbo_vaed.runtime import files

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CachedPrices:
    """What the cache holds of a machine: price changes, oldest first, and when they were read."""

    quoted_at: datetime
    points: tuple[tuple[datetime, Decimal], ...]

    @property
    def begins(self) -> datetime:
        return self.points[0][0] if self.points else self.quoted_at

    def at(self, moment: datetime) -> tuple[datetime, Decimal] | None:
        """The change that is in force; None before the first."""
        place = bisect.bisect_right(self.points, moment, key=lambda point: point[0])
        return self.points[place - 1] if place else None

    def warning(self, why: str) -> str:
        """Of a quote that is used although it is old."""
        return f"{OLD_PRICE} {self.quoted_at:%Y-%m-%d %H:%M} UTC: {why}"

    def with_newer(self, other: CachedPrices) -> CachedPrices:
        """Both, so that what was paid stays known when AWS has forgotten it."""
        points = dict(self.points) | dict(other.points)
        return CachedPrices(quoted_at=other.quoted_at, points=tuple(sorted(points.items())))


def read(path: Path) -> CachedPrices | None:
    """The cache of a machine; None where there is none or it cannot be read, for AWS knows."""
    try:
        found = json.loads(path.read_text())
        return CachedPrices(
            quoted_at=datetime.fromisoformat(found["quoted_at"]),
            points=tuple((datetime.fromisoformat(t), Decimal(p)) for t, p in found["points"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        _log.warning("cached price %s left out: %s", path, error)
        return None


def save(path: Path, cached: CachedPrices) -> None:
    """Write to the cache, where that is possible; otherwise the prices are read again."""
    points = [(since.isoformat(), plain(usd)) for since, usd in cached.points]
    try:
        files.write_json(path, {"quoted_at": cached.quoted_at.isoformat(), "points": points})
    except OSError as error:
        _log.warning("price is not cached in %s: %s", path, error)
