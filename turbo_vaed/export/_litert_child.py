"""Makes a .tflite of a graph, in the environment of LiteRT's converter: `litert.py` starts it.

Its arguments: `convert GRAPH PROGRAM` (a .pt2 of torch.export, a .tflite to write), or
`quantise PROGRAM PRECISION` (a .tflite to write anew; fp16, int8). It knows of no model, and
nothing of turbo_vaed is installed where it runs.
"""

from __future__ import annotations

import sys
from typing import Any


def convert(graph: str, program: str) -> None:
    """Write PROGRAM, in float32."""
    import litert_torch  # type: ignore[import-not-found, unused-ignore]
    import torch

    exported = torch.export.load(graph)
    arguments, _ = exported.example_inputs
    with torch.no_grad():
        litert_torch.convert(exported.module(), arguments).export(program)


def quantise(program: str, precision: str) -> None:
    """Write PROGRAM anew, with weights of that precision."""
    _quantiser(program, precision).quantize().export_model(program, overwrite=True)


def _quantiser(program: str, precision: str) -> Any:
    """What makes the weights of a float program fp16 or int8."""
    from ai_edge_quantizer import (  # type: ignore[import-not-found, unused-ignore]
        qtyping,
        quantizer,
        recipe,
    )
    from ai_edge_quantizer.algorithm_manager import (  # type: ignore[import-not-found, unused-ignore]
        AlgorithmName,
    )

    made = quantizer.Quantizer(program)
    if precision == "int8":
        made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    elif precision == "fp16":
        made.add_weight_only_config(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            num_bits=16,
            algorithm_key=AlgorithmName.FLOAT_CASTING,
        )
    else:
        raise ValueError(f"precision: found {precision!r}, allowed: fp16, int8")
    return made


if __name__ == "__main__":
    {"convert": convert, "quantise": quantise}[sys.argv[1]](*sys.argv[2:])
