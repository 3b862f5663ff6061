"""The source of a charge's price: where it was read, how old it was, and what it was for."""

from __future__ import annotations

LENGTH = 400
"""Characters that a ledger keeps."""
OLD_PRICE = "AWS returned no newer price than that of"
"""The warning of a quote that is older than it should be begins so; it stands at the end of the
source, before what is added to a charge later."""
_WASTED, _MINIMUM = "; wasted: ", "; minimum of "


def wasted(source: str, reason: str) -> str:
    """Of a charge that bought nothing, for a reason in words."""
    return f"{source}{_WASTED}{reason}"[:LENGTH]


def minimum(source: str, seconds: int) -> str:
    """Of a charge for paid time after the node had gone; its suffix is never cut off."""
    suffix = f"{_MINIMUM}{seconds} s"
    return source[: LENGTH - len(suffix)] + suffix


def old_price_in(source: str) -> str:
    """The warning of a quote that was older than it should be; empty where it was not."""
    _, found, rest = source.partition(OLD_PRICE)
    for added in (_WASTED, _MINIMUM):
        rest = rest.partition(added)[0]
    return found + rest
