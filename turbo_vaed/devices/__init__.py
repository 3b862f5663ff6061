"""Where a package is measured."""

from turbo_vaed.devices.measurement import Failed, Measure, Measurement
from turbo_vaed.devices.timing import Interval, Plan

__all__ = ["Failed", "Interval", "Measure", "Measurement", "Plan"]
