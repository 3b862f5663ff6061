from __future__ import annotations

from decimal import Decimal

import pytest

from turbo_vaed.costs import PriceBook
from turbo_vaed.errors import BudgetRefused


def test_zero_is_a_price() -> None:
    price = PriceBook(local_usd_per_hour=Decimal(0)).require("host", "local")
    assert price.usd_per_hour == 0
    assert "prices.local_usd_per_hour" in price.source


def test_unknown_local_price_is_refused_and_names_the_key() -> None:
    book = PriceBook(local_usd_per_hour=None)
    assert book.usd_per_hour("host", "local") is None
    with pytest.raises(BudgetRefused, match=r"prices\.local_usd_per_hour is null"):
        book.require("host", "local")


def test_the_local_price_is_no_price_of_a_rented_machine() -> None:
    book = PriceBook(local_usd_per_hour=Decimal("0.08"))
    assert book.usd_per_hour("g6.xlarge", "spot") is None
    with pytest.raises(BudgetRefused, match=r"'g6\.xlarge' on market 'spot' is unknown"):
        book.require("g6.xlarge", "spot")
