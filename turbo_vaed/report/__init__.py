"""One self-contained HTML page per PoC run, for an engineer and a finance person."""

from turbo_vaed.report.collect import collect
from turbo_vaed.report.context import Failure, Registration, ReportContext, Shot
from turbo_vaed.report.page import render, write_report
from turbo_vaed.report.screenshot import screenshot

__all__ = [
    "Failure",
    "Registration",
    "ReportContext",
    "Shot",
    "collect",
    "render",
    "screenshot",
    "write_report",
]
