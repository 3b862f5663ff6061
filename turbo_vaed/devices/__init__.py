"""Where a package is measured."""

from turbo_vaed.devices.measurement import Failed, Measurement
from turbo_vaed.devices.timing import MedianInterval, Plan

__all__ = ["Failed", "Measurement", "MedianInterval", "Plan"]
