"""How the devices' tests measure."""

from dataclasses import replace

from turbo_vaed.devices import Plan

SHAPE = (1, 8, 2, 4, 6)
PLAN = Plan(
    threads=1, max_warmup=1, min_samples=3, max_samples=3, max_spread=100.0, confidence=0.95
)
STRICT = replace(PLAN, max_spread=1.0)
"""In which the first process of an `unsteady` device is too far from the others."""
