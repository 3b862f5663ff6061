"""An interpreter of Core ML's programs (MIL) by PyTorch, for machines without Core ML.

It supports the operations that a decoder consists of; any other is an error. It reads the package
as it was written. Each result is rounded to the type that the program declares for it,
while sums inside an operation are of float32: a phone's may be coarser.

Source of what the operations mean: coremltools 9.0, `converters/mil/mil/ops/defs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.export.coreml import MODEL
from turbo_vaed.export.graph import ExportError
from turbo_vaed.runtime.import_noise import quiet_imports

with quiet_imports():
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import types
    from coremltools.proto import Model_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

Values = Mapping[str, Any]
"""An operation's inputs by name: tensors in float32, or constants of Python."""


def open_mlpackage(package: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What computes the video (float32) of latents (float32) as the package's program says.

    Raises:
        ExportError: it has an operation that is not interpreted here, or not one input and output.
    """
    path = package / "Data" / MODEL
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    program = load(spec, spec.specificationVersion, str(path.parent / "weights"))
    function = program.functions["main"]
    if len(function.inputs) != 1 or len(function.outputs) != 1:
        raise ExportError(
            f"{package}: found {len(function.inputs)} inputs and {len(function.outputs)} outputs, "
            "expected one of each"
        )
    unknown = {op.op_type for op in function.operations} - {"const", *OPERATIONS}
    if unknown:
        raise ExportError(
            f"{package}: no interpreter for {', '.join(sorted(unknown))}; write one in {__name__}, "
            f"and its test. There are: {', '.join(sorted(OPERATIONS))}"
        )
    (given,) = function.inputs

    def run(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            video = _run(function, {given: torch.from_numpy(np.asarray(latents, np.float32))})
        out: NDArray[np.float32] = video.numpy()
        return out

    return run


def _run(function: Any, values: dict[str, Tensor]) -> Tensor:
    """The function's one output; what no operation needs any more is dropped."""
    (output,) = function.outputs
    left = Counter(
        var.name for op in function.operations for var in _variables(op) if var.val is None
    )
    left[output.name] += 1
    for op in function.operations:
        if op.op_type == "const":
            continue
        found = OPERATIONS[op.op_type]({k: _value(v, values) for k, v in op.inputs.items()})
        results = found if isinstance(found, tuple) else (found,)
        for var, result in zip(op.outputs, results, strict=True):
            values[var.name] = _rounded(result, var)
        for var in _variables(op):
            left[var.name] -= 1
            if not left[var.name]:
                values.pop(var.name, None)
    return values[output.name]


def _variables(op: Any) -> list[Any]:
    """What it reads."""
    flat: list[Any] = []
    for value in op.inputs.values():
        flat += value if isinstance(value, (list, tuple)) else [value]
    return [var for var in flat if var is not None]


def _value(var: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(var, (list, tuple)):
        return [_value(each, values) for each in var]
    if var is None:
        return None
    if var.val is None:
        return values[var.name]
    if isinstance(var.val, np.ndarray) and var.val.dtype in (np.float16, np.float32):
        return torch.from_numpy(var.val.astype(np.float32))
    return var.val.tolist() if isinstance(var.val, (np.ndarray, np.generic)) else var.val


def _rounded(value: Tensor, var: Any) -> Tensor:
    """To the type and checked against the shape that the program declares."""
    if tuple(value.shape) != tuple(var.shape):
        raise ExportError(
            f"{var.op.op_type} {var.name}: found {tuple(value.shape)}, the program declares "
            f"{tuple(var.shape)}"
        )
    return value.half().float() if var.dtype == types.fp16 else value


def _conv(v: Values) -> Tensor:
    x: Tensor = v["x"]
    kind = v.get("pad_type", "valid")
    if x.dim() != 4 or kind not in ("custom", "valid"):
        raise ExportError(
            f"conv: found {x.dim() - 2} dimensions and pad_type {kind}, interpreted: 2, and "
            "custom or valid"
        )
    if kind == "custom":
        top, bottom, left, right = v["pad"]
        x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(
        x,
        v["weight"],
        v.get("bias"),
        stride=v.get("strides", [1, 1]),
        dilation=v.get("dilations", [1, 1]),
        groups=v.get("groups", 1),
    )


def _batch_norm(v: Values) -> Tensor:
    """Of constants alone; Core ML fuses a gain and an offset by channel into one."""
    return F.batch_norm(
        v["x"], v["mean"], v["variance"], v.get("gamma"), v.get("beta"), eps=v.get("epsilon", 1e-5)
    )


def _slice_by_index(v: Values) -> Tensor:
    x: Tensor = v["x"]
    rank = x.dim()
    masks = {k: v.get(k) or [False] * rank for k in ("begin_mask", "end_mask", "squeeze_mask")}
    strides = v.get("stride") or [1] * rank
    if any(masks["squeeze_mask"]) or any(step < 1 for step in strides):
        raise ExportError("slice_by_index: neither squeezing nor backward steps are interpreted")
    return x[
        tuple(
            slice(
                None if masks["begin_mask"][i] else v["begin"][i],
                None if masks["end_mask"][i] else v["end"][i],
                strides[i],
            )
            for i in range(rank)
        )
    ]


def _split(v: Values) -> tuple[Tensor, ...]:
    sizes = v.get("split_sizes")
    if sizes is None:
        sizes = v["x"].shape[v["axis"]] // v["num_splits"]
    return torch.split(v["x"], sizes, dim=v["axis"])


def _concat(v: Values) -> Tensor:
    if v.get("interleave"):
        raise ExportError("concat: interleaving is not interpreted")
    return torch.cat(v["values"], dim=v["axis"])


def _cast(v: Values) -> Tensor:
    if v["dtype"] not in ("fp16", "fp32"):
        raise ExportError(f"cast: found {v['dtype']}, interpreted: fp16, fp32")
    x: Tensor = v["x"]
    return x


OPERATIONS: Mapping[str, Callable[[Values], Tensor | tuple[Tensor, ...]]] = {
    "add": lambda v: v["x"] + v["y"],
    "batch_norm": _batch_norm,
    "cast": _cast,
    "concat": _concat,
    "conv": _conv,
    "mul": lambda v: v["x"] * v["y"],
    "relu": lambda v: F.relu(v["x"]),
    "reshape": lambda v: v["x"].reshape(v["shape"]),
    "rsqrt": lambda v: torch.rsqrt(v["x"] + v.get("epsilon", 1e-12)),
    "silu": lambda v: F.silu(v["x"]),
    "slice_by_index": _slice_by_index,
    "split": _split,
    "sub": lambda v: v["x"] - v["y"],
    "transpose": lambda v: v["x"].permute(v["perm"]),
}
"""By MIL's name."""
