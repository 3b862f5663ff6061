"""A profile of params.yaml -> the device that it describes."""

from __future__ import annotations

from pathlib import Path

from turbo_vaed.device_params import DeviceProfile, HostProfile
from turbo_vaed.devices.adb import AdbDevice
from turbo_vaed.devices.device import Device
from turbo_vaed.devices.host import MAX_OTHERS_SHARE
from turbo_vaed.devices.this_host import HostDevice


def open_device(
    profile: DeviceProfile, root: Path, *, max_others_share: float = MAX_OTHERS_SHARE
) -> Device:
    """The device of a profile, whose relative paths are below `root`."""
    if isinstance(profile, HostProfile):
        return HostDevice(name=profile.name, max_others_share=max_others_share)
    return AdbDevice(profile=profile, root=root)
