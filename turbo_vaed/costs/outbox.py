"""Charges that the ledger could not take yet, stored in files until they are posted to it.

A file is written whole or not at all, and removed once its charges are posted. A charge is
identified by its content, so that posting it twice adds it once.
"""

from __future__ import annotations

import json
import logging
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
from turbo_vaed.runtime.files import write_text

_log = logging.getLogger(__name__)
_AMOUNTS, _MOMENTS = ("quantity", "unit_price_usd", "amount_usd"), ("started_at", "ended_at")


def store(charges: Iterable[Charge], folder: Path) -> Path:
    """Write charges into a new file of `folder`, to the last digit; returns it.

    Raises:
        OSError: it cannot be written, as where the disk is full.
    """
    path = folder / f"{uuid4().hex}.jsonl"
    return write_text(path, "".join(line + "\n" for line in lines(charges)))


def lines(charges: Iterable[Charge]) -> Iterator[str]:
    """A JSON object per charge, with exact amounts."""
    return (json.dumps(_document(charge)) for charge in charges)


def add_or_store(ledger: Ledger, charge: Charge, folder: Path) -> None:
    """Append a charge to the ledger, or store it for the next run where the ledger fails.

    Raises:
        OSError: it can neither be posted nor stored.
    """
    try:
        ledger.add(charge)
    except Unreachable as error:
        path = store((charge,), folder)
        _log.warning("%s; the charge is stored in %s, and the next run posts it", error, path)


def post(ledger: Ledger, folder: Path) -> int:
    """Post the charges stored in `folder`, a file at a time; returns how many were new.

    Raises:
        CorruptFile: a file is not what was written; it stays.
        Unreachable: the ledger does not take them; they stay.
    """
    posted = 0
    for path in sorted(folder.glob("*.jsonl")):
        try:
            stored = path.read_text(encoding="utf-8").splitlines()
            charges = [_charge(json.loads(line)) for line in stored]
        except FileNotFoundError:  # replaced by a newer file, or posted by another process
            continue
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise CorruptFile(
                f"{path} holds charges that the ledger did not take, and cannot be read ({error}); "
                "post them by hand, then remove it"
            ) from error
        posted += ledger.add_all(charges)
        path.unlink(missing_ok=True)  # another process may have posted it first
    return posted


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
