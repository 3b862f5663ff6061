"""Which runs are complete, and which go on, by the limits as they are now. Without Ray."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.distill.checkpoints import make_state
from turbo_vaed.distill import train
from turbo_vaed.distill.stopping import Target
from turbo_vaed.distill.store import Store
