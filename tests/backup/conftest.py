"""A checkout with something in every place, and packages to register."""

from __future__ import annotations

from tests.costs.conftest import postgres as postgres
from tests.registry.conftest import make as make
