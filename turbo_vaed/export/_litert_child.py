"""Makes a .tflite of a graph, in the environment of LiteRT's converter: `litert.py` starts it.

Its arguments: `convert GRAPH PROGRAM` (a .pt2 of torch.export, a .tflite to write), or
`quantise PROGRAM PRECISION` (a .tflite to write anew; fp16, int8). It knows of no model, and
nothing of turbo_vaed is installed where it runs.
"""

from __future__ import annotations

import sys


def convert(graph: str, program: str) -> None:
    """Write PROGRAM, in float32."""
    import litert_torch  # type: ignore[import-not-found, unused-ignore]
    import torch

    exported = torch.export.load(graph)
    arguments, _ = exported.example_inputs
    with torch.no_grad():
        litert_torch.convert(exported.module(), arguments).export(program)


KEPT_FLOAT = ("Norm", "conv_out", "upsampler2d", "conv_shortcut")
"""Layers that int8 leaves alone, by what their operations' names hold: the norms, whose squares
have no even range, and the narrow ones that all of the picture passes through. They are 1 % of the
weights; on a trained student they make 43 dB of 31 (docs/on-device.md)."""


def quantise(program: str, precision: str) -> None:
    """Write PROGRAM anew, with weights of that precision."""
    from ai_edge_quantizer import (  # type: ignore[import-not-found, unused-ignore]
        qtyping,
        quantizer,
        recipe,
    )
    from ai_edge_quantizer.algorithm_manager import (  # type: ignore[import-not-found, unused-ignore]
        AlgorithmName,
    )

    every = qtyping.TFLOperationName.ALL_SUPPORTED
    made = quantizer.Quantizer(program)
    if precision == "int8":
        made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        _check_names(program)
        for name in KEPT_FLOAT:
            made.update_quantization_recipe(
                f".*{name}.*", every, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
    elif precision == "fp16":
        made.add_weight_only_config(
            ".*", every, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
    else:
        raise ValueError(f"precision: found {precision!r}, allowed: fp16, int8")
    made.quantize().export_model(program, overwrite=True)


def _check_names(program: str) -> None:
    """Raise ValueError where the operations do not bear the names of the decoder's layers."""
    from ai_edge_litert.interpreter import Interpreter

    found = [tensor["name"] for tensor in Interpreter(program).get_tensor_details()]
    for name in KEPT_FLOAT[:2]:  # every decoder has them
        if not any(name in each for each in found):
            raise ValueError(
                f"no operation's name holds {name!r}, so that it would be quantised; this "
                f"converter names them otherwise, for instance {found[len(found) // 2]!r}"
            )


if __name__ == "__main__":
    {"convert": convert, "quantise": quantise}[sys.argv[1]](*sys.argv[2:])
