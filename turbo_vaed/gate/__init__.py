"""The gate: what was measured of a package, judged, and the choice among several."""

from turbo_vaed.gate.advice import AdviceFacts, advise
from turbo_vaed.gate.choice import Candidate, Choice, choose, reason_to_repeat, repeat_advice
from turbo_vaed.gate.judge import BYTES_PER_MB, Evidence, judge, least_psnr_db, limits_of
from turbo_vaed.gate.verdict import (
    CHECK_NAMES,
    TIMED,
    VERDICT_NAME,
    Check,
    Result,
    Verdict,
    read_verdict,
    write_verdict,
)

__all__ = [
    "BYTES_PER_MB",
    "CHECK_NAMES",
    "TIMED",
    "VERDICT_NAME",
    "AdviceFacts",
    "Candidate",
    "Check",
    "Choice",
    "Evidence",
    "Result",
    "Verdict",
    "advise",
    "choose",
    "judge",
    "least_psnr_db",
    "limits_of",
    "read_verdict",
    "reason_to_repeat",
    "repeat_advice",
    "write_verdict",
]
