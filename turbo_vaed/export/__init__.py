"""Decoders as packages that run on devices."""

from turbo_vaed.export.executorch import count_delegation, export_xnnpack
from turbo_vaed.export.export_job import ExportJob
from turbo_vaed.export.graph import ExportError
from turbo_vaed.export.package import (
    IoSpec,
    Package,
    PackageFile,
    Program,
    load_package,
    write_package,
)
from turbo_vaed.export.sampling import spread_out
from turbo_vaed.export.targets import RUNTIMES, Target, all_targets, export_package

__all__ = [
    "RUNTIMES",
    "ExportError",
    "ExportJob",
    "IoSpec",
    "Package",
    "PackageFile",
    "Program",
    "Target",
    "all_targets",
    "count_delegation",
    "export_package",
    "export_xnnpack",
    "load_package",
    "spread_out",
    "write_package",
]
