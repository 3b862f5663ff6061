"""A profile of devices.yaml -> the device that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from turbo_vaed.config.devices import AdbProfile, AppleProfile, DeviceProfile, HostProfile
from turbo_vaed.costs.run_context import Usage
from turbo_vaed.devices.adb import AdbDevice
from turbo_vaed.devices.apple import AppleDevice
from turbo_vaed.devices.device import Device, ReportProgress, no_report
from turbo_vaed.devices.farm import FarmDevice
from turbo_vaed.devices.host import MAX_BACKGROUND_CPU_SHARE, HostDevice
from turbo_vaed.devices.iphone import IphoneDevice


def open_device(
    profile: DeviceProfile,
    root: Path,
    *,
    max_background_cpu_share: float = MAX_BACKGROUND_CPU_SHARE,
    charge: Callable[[Usage], None] | None = None,
    tags: Callable[[], Mapping[str, str]] | None = None,
    report_progress: ReportProgress = no_report,
) -> Device:
    """The device of a profile, whose relative paths are below `root`.

    Args:
        max_background_cpu_share: of all processors' time, allowed to other processes of this host.
        charge: called with what a device that costs money has cost.
        tags: of what AWS bills for it.
        report_progress: called with the progress of a measurement.
    """
    if isinstance(profile, HostProfile):
        return HostDevice(
            name=profile.name,
            max_background_cpu_share=max_background_cpu_share,
            report_progress=report_progress,
        )
    if isinstance(profile, AdbProfile):
        return AdbDevice(profile=profile, root=root, report_progress=report_progress)
    if isinstance(profile, AppleProfile) and profile.iphone is not None:
        return IphoneDevice(profile=profile, report_progress=report_progress)
    if isinstance(profile, AppleProfile):
        return AppleDevice(profile=profile, report_progress=report_progress)
    return FarmDevice(
        profile=profile, root=root, charge=charge, tags=tags, report_progress=report_progress
    )
