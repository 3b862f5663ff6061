"""A distillation in flight, or the last one, from its progress file: what a person asks first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from turbo_vaed.costs.money import format_usd, plain
from turbo_vaed.distill.events import Account, read_events
from turbo_vaed.distill.follow import NOTHING
from turbo_vaed.errors import UserError
from turbo_vaed.runtime.progress import format_duration

FRESH_SECONDS = 120.0
"""A run that tells nothing for longer may be gone; workers that start again take up to a minute."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a progress file says of a run. None is what is not known yet."""

    customer: str
    state: str
    """`preparing`, `starting`, `running`, `silent`, `failed`, or how it ended: `finished`,
    `good enough`, `budget`, `diverged`."""
    reason: str
    """Of a run that ended or failed."""
    silent_seconds: float
    """Since the last event."""
    doing: str
    """What is made before the steps; nothing of a run that has opened."""
    doing_seconds: float | None
    """Since that began."""
    done_clips: int | None
    clips: int | None
    step: int
    steps: int
    loss: float | None
    val_psnr: float | None
    """dB, of the last validation."""
    best_val_psnr: float | None
    best_step: int | None
    spent_usd: Decimal | None
    usd_per_tenth_db: Decimal | None
    seconds_left: float | None
    """Of a run that goes on."""
    workers: int
    checkpoint_step: int | None
    checkpoint_age_seconds: float | None
    checkpoint_error: str
    """Why a newer one could not be written."""
    restarts: int
    lost_steps: int
    """Computed again after restarts."""
    wasted_seconds: float
    wasted_usd: Decimal
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """For JSON: dollars as text, that no digit is lost."""
        return {
            key: plain(value) if isinstance(value, Decimal) else value
            for key, value in asdict(self).items()
        }

    def rows(self) -> list[dict[str, str]]:
        """For a table: `what` and `value`."""
        known = {
            "state": self._state(),
            "clips done": "" if self.clips is None else f"{self.done_clips} of {self.clips}",
            "step": f"{self.step} of {self.steps}" if self.steps else "",
            "loss": "" if self.loss is None else f"{self.loss:.4f}",
            "validation": "" if self.val_psnr is None else f"{self.val_psnr:.2f} dB",
            "best": ""
            if self.best_val_psnr is None
            else f"{self.best_val_psnr:.2f} dB at step {self.best_step}",
            "spent by the run": "" if self.spent_usd is None else format_usd(self.spent_usd),
            "per 0.1 dB": (NOTHING if self.steps else "")
            if self.usd_per_tenth_db is None
            else format_usd(self.usd_per_tenth_db),
            "time left": "" if self.seconds_left is None else format_duration(self.seconds_left),
            "workers": str(self.workers or ""),
            "last checkpoint": ""
            if self.checkpoint_age_seconds is None
            else f"step {self.checkpoint_step}, {format_duration(self.checkpoint_age_seconds)} ago",
            "checkpoint fails": self.checkpoint_error,
            "restarts": f"{self.restarts}: {self.lost_steps} steps again, "
            f"{self.wasted_seconds:.1f} s, {format_usd(self.wasted_usd)} wasted"
            if self.restarts
            else "none",
            "warnings": "\n".join(self.warnings) or "none",
        }
        return [{"what": what, "value": value} for what, value in known.items() if value]

    def _state(self) -> str:
        words = f"{self.state}: {self.reason}" if self.reason else self.state
        if self.state == "silent":
            words = f"silent since {self.silent_seconds:.0f} s"
        if not self.doing or self.doing_seconds is None:
            return words
        doing = f"{self.doing}, since {format_duration(self.doing_seconds)}"
        return doing if self.state == "preparing" else f"{words} ({doing})"


def read_status(path: Path, *, customer: str, now: float) -> Status:
    """The status of the run that writes, or wrote, the progress file at `path`.

    Args:
        now: Unix seconds.

    Raises:
        UserError: there is no such file.
        CorruptFile: it is no progress file.
    """
    if not path.is_file():
        raise UserError(
            f"no distillation of {customer} yet ({path} is not there); "
            f"run: turbo-vaed poc {customer}"
        )
    account = Account()
    for event in read_events(path):
        account.add(event)
    preparing = account.preparing
    if preparing is not None and account.ended is not None:
        account = Account(preparing=preparing)  # the figures are of the run before
    silent = max(0.0, now - max(account.last_at, preparing.last_at if preparing else 0.0))
    state, reason = _state(account, silent)
    validated = account.validations
    best = max(validated, key=lambda known: known.psnr, default=None)
    checkpoint = max(account.checkpoints, default=None)
    age = None if checkpoint is None else now - account.checkpoints[checkpoint]
    spent = account.row.get("spent_usd")
    return Status(
        customer=customer,
        state=state,
        reason=reason,
        silent_seconds=silent,
        doing=preparing.doing if preparing else "",
        doing_seconds=max(0.0, now - preparing.began_at) if preparing else None,
        done_clips=preparing.done if preparing else None,
        clips=preparing.clips if preparing else None,
        step=account.step,
        steps=account.steps,
        loss=account.row.get("loss"),
        val_psnr=validated[-1].psnr if validated else None,
        best_val_psnr=best.psnr if best else None,
        best_step=best.step if best else None,
        spent_usd=None if spent is None else Decimal(spent),
        usd_per_tenth_db=account.usd_per_tenth_db,
        seconds_left=account.seconds_left if state == "running" else None,
        workers=account.workers,
        checkpoint_step=checkpoint,
        checkpoint_age_seconds=age,
        checkpoint_error=account.save_error,
        restarts=len(account.restarts),
        lost_steps=sum(restart.lost_steps for restart in account.restarts),
        wasted_seconds=sum(restart.seconds for restart in account.restarts),
        wasted_usd=sum((restart.usd for restart in account.restarts), Decimal(0)),
        warnings=tuple(
            f"step {known['step']}, {known['kind']}: {known['text']}" for known in account.warnings
        ),
    )


def _state(account: Account, silent_seconds: float) -> tuple[str, str]:
    """How the run stands, and why in words."""
    if account.preparing is not None:
        if account.preparing.failed:
            return "failed", account.preparing.failed
        return ("silent" if silent_seconds > FRESH_SECONDS else "preparing"), ""
    if account.failed:
        return "failed", account.failed
    if account.ended is not None:
        return str(account.ended["stopped"]), str(account.ended["reason"])
    if silent_seconds > FRESH_SECONDS:
        return "silent", ""
    return ("running" if account.workers else "starting"), ""
