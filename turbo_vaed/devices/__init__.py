"""Where a package is measured. So far: this host, through the ExecuTorch runtime."""

from turbo_vaed.devices.measurement import Measure, Measurement

__all__ = ["Measure", "Measurement"]
