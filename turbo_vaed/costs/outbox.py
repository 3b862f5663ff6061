"""Charges that the ledger did not take: kept in files until it does.

A file is written whole or not at all and removed once its charges are booked; booked twice they
are one, for a charge is known by its content.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

from turbo_vaed.costs.ledger import Charge, Ledger
from turbo_vaed.costs.money import plain
from turbo_vaed.errors import CorruptFile, Unreachable

_log = logging.getLogger(__name__)
_AMOUNTS, _MOMENTS = ("quantity", "unit_price_usd", "amount_usd"), ("started_at", "ended_at")


def keep(charges: Iterable[Charge], folder: Path) -> Path:
    """Write charges into a new file of `folder`, to the last digit; returns it.

    Raises:
        OSError: it cannot be written, as where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid4().hex}.jsonl"
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.writelines(line + "\n" for line in lines(charges))
            stream.flush()
            os.fsync(stream.fileno())
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def lines(charges: Iterable[Charge]) -> Iterator[str]:
    """What is kept of charges: a JSON object each, amounts to the last digit."""
    return (json.dumps(_document(charge)) for charge in charges)


def add(ledger: Ledger, charge: Charge, folder: Path) -> None:
    """Append a charge to the ledger, or keep it for the next run where that does not take it.

    Raises:
        OSError: it can neither be booked nor kept.
    """
    try:
        ledger.add(charge)
    except Unreachable as error:
        path = keep((charge,), folder)
        _log.warning("%s; the charge is kept in %s, and the next run books it", error, path)


def book(ledger: Ledger, folder: Path) -> int:
    """Book what is kept in `folder`, a file at a time; returns how many charges were new.

    Raises:
        CorruptFile: a file is not what was written; it stays.
        Unreachable: the ledger does not take them; they stay.
    """
    booked = 0
    for path in sorted(folder.glob("*.jsonl")):
        try:
            kept = path.read_text(encoding="utf-8").splitlines()
            charges = [_charge(json.loads(line)) for line in kept]
        except FileNotFoundError:  # its meter has put a newer one in its place, or was served
            continue
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise CorruptFile(
                f"{path} holds charges that the ledger did not take, and cannot be read ({error}); "
                "book them by hand, then remove it"
            ) from error
        booked += ledger.add_all(charges)
        path.unlink(missing_ok=True)  # by whoever booked it first
    return booked


def _document(charge: Charge) -> dict[str, str]:
    values = {field.name: getattr(charge, field.name) for field in fields(charge)}
    return values | {
        **{name: plain(values[name]) for name in _AMOUNTS},
        **{name: values[name].isoformat() for name in _MOMENTS},
    }


def _charge(document: dict[str, Any]) -> Charge:
    return Charge(
        **document
        | {name: Decimal(document[name]) for name in _AMOUNTS}
        | {name: datetime.fromisoformat(document[name]) for name in _MOMENTS}
    )
