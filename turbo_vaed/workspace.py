"""`Workspace`: the place of one customer, its params and its paths."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from turbo_vaed.config import load, pipeline
from turbo_vaed.config.schema import Params, check_customer_name
from turbo_vaed.config.sections import read_section
from turbo_vaed.costs.run_context import RunContext
from turbo_vaed.errors import Refused, UserError


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """One customer's params and paths; nothing of another customer is reachable from it."""

    customer: str
    params: Params
    root: Path
    run_context: RunContext

    @classmethod
    def load(cls, root: Path, customer: str, run_context: RunContext | None = None) -> Workspace:
        """The customer's place in the checkout at `root`, by the configuration as it is now.

        Raises:
            UserError: a bad name, an unknown customer, invalid params.
        """
        return cls(
            customer=customer,
            params=load.load(root, customer),
            root=root,
            run_context=run_context or RunContext(),
        )

    @classmethod
    def for_stage(
        cls, root: Path, customer: str, stage: str, run_context: RunContext | None = None
    ) -> Workspace:
        """What a stage gets: its own section of the params, as stage `params` has written it. The
        files at the root, which a person may edit meanwhile, are not read.

        Raises:
            UserError: a bad name, or stage `params` has not been run.
            CorruptFile: the section is not what that stage writes.
        """
        check_customer_name(customer)
        folder = root / "work" / customer / "params"
        return cls(
            customer=customer,
            params=read_section(folder, stage, customer),
            root=root,
            run_context=run_context or RunContext(),
        )

    @property
    def work(self) -> Path:
        """Everything that is made for this customer."""
        return self.root / "work" / self.customer

    @property
    def source(self) -> Path:
        """The customer's folder of videos."""
        return (self.root / self.params.source).resolve()

    @property
    def dvc_lock(self) -> Path:
        """What DVC has recorded of the customer's stages: their params, inputs and outputs."""
        return pipeline.folder(self.root, self.customer) / "dvc.lock"

    def folder(self, stage: str) -> Path:
        """The output folder of a stage; it exists only when the stage has succeeded."""
        return self.work / stage

    @property
    def progress_file(self) -> Path:
        """The event log of the last distillation, an event a line."""
        return self.work / "checkpoints" / "progress.jsonl"

    @property
    def report(self) -> Path:
        """The page of the last run that began."""
        return self.work / "report" / "report.html"

    @property
    def not_started(self) -> Path:
        """The page of a run that ended before its first stage; the next that begins removes it."""
        return self.work / "report" / "not-started.html"

    @contextmanager
    def reading_sections(self) -> Iterator[None]:
        """While a stage runs, nobody rewrites the sections: DVC records them when it ends."""
        with self._sections_lock() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # whoever writes them takes milliseconds
            yield

    @contextmanager
    def writing_sections(self) -> Iterator[None]:
        """The sections may be rewritten in the block.

        Raises:
            Refused: a stage of the customer is running.
        """
        with self._sections_lock() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"a stage of {self.customer} is running, and its params would change; wait for "
                    "it to finish"
                ) from None
            yield

    def _sections_lock(self) -> IO[str]:
        self.work.mkdir(parents=True, exist_ok=True)
        return (self.work / ".params.lock").open("w")

    def teacher_weights(self) -> Path:
        """The folder of the teacher's weights, below assets/teachers."""
        teachers = (self.root / "assets" / "teachers").resolve()
        path = (self.root / self.params.encode.teacher_weights).resolve()
        if teachers not in path.parents or not path.is_dir():
            raise UserError(
                f"encode.teacher_weights: {self.params.encode.teacher_weights} is no folder below "
                "assets/teachers; put the teacher's config and safetensors there"
            )
        return path

    def perceptual_weights(self) -> Path | None:
        """The file of LPIPS' weights; None where the loss takes none, or the hub's fixed ones."""
        found = self.params.distill
        if found.perceptual != "lpips" or found.perceptual_weights in (None, "hub"):
            return None
        return self.root / str(found.perceptual_weights)

    @contextmanager
    def writing(self, stage: str) -> Iterator[Path]:
        """A fresh folder that becomes the stage's output if, and only if, the block succeeds."""
        final = self.folder(stage)
        partial = self.work / f".{stage}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        last = self.work / f".{stage}.last"
        shutil.rmtree(last, ignore_errors=True)
        if final.exists():
            final.rename(last)
        partial.rename(final)
        shutil.rmtree(last, ignore_errors=True)
