"""What a worker of this machine does a second, and how many there is room for:
`turbo_vaed.planning.flops` starts it. Its arguments: RESULT PRECISION [PRECISION ...]."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from turbo_vaed.distill.student import worker_flops

if __name__ == "__main__":
    result, *precisions = sys.argv[1:]
    places = torch.cuda.device_count() or os.cpu_count() or 1
    found = {"flops": worker_flops(*precisions), "places": places}
    Path(result).write_text(json.dumps(found), encoding="utf-8")
