"""Where the tests of EC2's runs find what they share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from turbo_vaed.settings import Settings

REPOSITORY = Path(__file__).parents[3]


def on_postgres(settings: Settings) -> Settings:
    return dataclasses.replace(settings, ledger_url="postgresql://ledger.example/costs")
