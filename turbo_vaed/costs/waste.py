"""Time that was paid for and bought nothing: useful charges turned into wasted ones afterwards.

The ledger is append only, so a charge is never changed: a pair of corrections takes the useful
part back and charges the same as wasted. A pair adds up to nothing, so the total stays what it
was to the last digit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from turbo_vaed.costs import price_source
from turbo_vaed.costs.ledger import Charge
from turbo_vaed.costs.money import AMOUNT_QUANTUM, PRICE_QUANTUM, share, total_usd

Span = tuple[datetime, datetime]


def waste_corrections(
    charges: Iterable[Charge], began: datetime, ended: datetime, reason: str
) -> list[Charge]:
    """The pairs that turn what is still useful in [began, ended] into wasted.

    A charge that lies partly in it is split: its amount grows with time from 0 to the whole,
    rounded once at each end of the part, so that the parts of a charge add up to it exactly
    however often it is cut. Parts that meet, of one resource at one price, share a pair.

    Args:
        charges: of one stage of one run, earlier corrections among them. What a correction has
            taken back is not taken back again: where nothing is left there is nothing to do.
        began, ended: aware times.
        reason: kept in the price source of both charges of a pair.

    Raises:
        ValueError: `ended` lies before `began`.
    """
    if ended < began:
        raise ValueError(f"waste ends {ended}, before it begins {began}")
    found = sorted(set(charges), key=lambda c: (c.started_at, c.ended_at, c.key))
    useful = [
        c for c in found if c.useful == "useful" and c.started_at < ended and c.ended_at > began
    ]
    back: defaultdict[tuple[object, ...], list[Span]] = defaultdict(list)
    for correction in (c for c in useful if c.quantity < 0):
        back[_resource(correction)].append((correction.started_at, correction.ended_at))
    pairs: list[Charge] = []
    for charge in (c for c in useful if c.quantity > 0):
        inside = (max(began, charge.started_at), min(ended, charge.ended_at))
        for start, end in _without(inside, back[_resource(charge)]):
            part = _part(charge, start, end, reason)
            if pairs and _meet(pairs[-1], part):
                part = _joined(pairs.pop(), part)
                pairs.pop()
            pairs += [_negative(part), part]
    return pairs


def _resource(charge: Charge) -> tuple[object, ...]:
    """What a correction shares with the charge that it corrects."""
    return charge.resource, charge.market, charge.unit, charge.unit_price_usd


def _without(span: Span, taken: Iterable[Span]) -> list[Span]:
    """What is left of `span`, in order, when the spans `taken` are cut out of it."""
    left = [span] if span[0] < span[1] else []
    for start, end in taken:
        left = [
            piece
            for a, b in left
            for piece in ((a, min(b, start)), (max(a, end), b))
            if piece[0] < piece[1]
        ]
    return left


def _part(charge: Charge, start: datetime, end: datetime, reason: str) -> Charge:
    """The part of a useful charge from `start` to `end`, as wasted."""
    tick = timedelta(microseconds=1)
    whole = (charge.ended_at - charge.started_at) // tick
    since, until = ((moment - charge.started_at) // tick for moment in (start, end))

    def grown(value: Decimal, quantum: Decimal) -> Decimal:
        return share(value, until, whole, quantum) - share(value, since, whole, quantum)

    return replace(
        charge,
        quantity=grown(charge.quantity, PRICE_QUANTUM),
        amount_usd=grown(charge.amount_usd, AMOUNT_QUANTUM),
        started_at=start,
        ended_at=end,
        useful="wasted",
        price_source=price_source.wasted(charge.price_source, reason),
    )


def _meet(before: Charge, after: Charge) -> bool:
    same = _resource(before) == _resource(after) and before.price_source == after.price_source
    return same and before.ended_at == after.started_at


def _joined(before: Charge, after: Charge) -> Charge:
    return replace(
        before,
        quantity=total_usd((before.quantity, after.quantity)),
        amount_usd=total_usd((before.amount_usd, after.amount_usd)),
        ended_at=after.ended_at,
    )


def _negative(charge: Charge) -> Charge:
    return replace(
        charge, quantity=-charge.quantity, amount_usd=-charge.amount_usd, useful="useful"
    )
