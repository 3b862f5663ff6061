"""The command line with a training that takes seconds: the loop itself, on one worker in this
process, where a run has Ray Train start workers for it. bench/runs_at_once.py has DVC call this for
stage `distill`.
"""

from __future__ import annotations

import sys
from typing import Any

from turbo_vaed.cli import main
from turbo_vaed.distill import train
from turbo_vaed.distill.checkpoints import Saver, Store
from turbo_vaed.distill.job import Job
from turbo_vaed.distill.loop import Loop
from turbo_vaed.distill.stopping import Stopping


def fit(job: Job, store: Store, _storage: str, on_event: train.OnEvent, _costs: Any) -> None:
    """In place of `train._fit`: the same steps, events and checkpoints."""
    with Saver(store, on_event) as saver:
        loop = Loop(job, on_event=on_event, save=saver.submit, decide=Stopping(job))
        loop.emit_start(None)
        loop.run()


if __name__ == "__main__":
    train._fit = fit
    sys.exit(main())
