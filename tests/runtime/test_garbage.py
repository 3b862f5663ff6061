"""A process that ends without its last collections, and yet in order."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import atexit
from turbo_vaed.runtime import garbage
class Cycle:
    def __init__(self): self.itself = self
    def __del__(self): print("collected")
{call}
Cycle()
atexit.register(print, "registered")
print("buffered", end=" ")
"""


@pytest.mark.parametrize(
    ("call", "printed"),
    [
        ("", "buffered registered\ncollected\n"),
        ("garbage.skip_last_collections()", "buffered registered\n"),
    ],
)
def test_nothing_is_collected_at_the_end_and_all_that_is_registered_runs(call, printed):
    command = [sys.executable, "-c", CODE.format(call=call)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == printed
