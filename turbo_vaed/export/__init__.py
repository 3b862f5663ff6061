"""Decoders as packages that run on devices."""

from turbo_vaed.export.executorch import ExportError, count_delegation, export_xnnpack
from turbo_vaed.export.package import (
    IoSpec,
    Package,
    PackageFile,
    load_package,
    write_package,
)

__all__ = [
    "ExportError",
    "IoSpec",
    "Package",
    "PackageFile",
    "count_delegation",
    "export_xnnpack",
    "load_package",
    "write_package",
]
