"""A decoder as an ExecuTorch program for XNNPACK, the CPU backend of Android and iOS.

In float32, in float16 (weights and arithmetic, half the file), or with its convolutions in int8.

Shapes: B batch, C channels, t latent frames, h w latent; T H W video.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbo_vaed.export._executorch_repairs import mended
from turbo_vaed.export.graph import ExportError, plain, scaled, with_epsilons_in_half
from turbo_vaed.export.package import check_latent_scaling
from turbo_vaed.runtime.files import atomic_file
from turbo_vaed.runtime.import_noise import quiet_imports, without_treespec_warnings

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from turbo_vaed.models import TurboVaedDecoder
    from turbo_vaed.models.layers import FrameConv
    from turbo_vaed.models.timeline import Timeline

PROGRAM_NAME = "decoder.pte"
PRECISIONS = ("fp32", "fp16", "int8")


def export_xnnpack(
    decoder: "TurboVaedDecoder",
    *,
    latent_shape: tuple[int, int, int, int, int],
    folder: Path,
    precision: str = "fp32",
    calibration: "Sequence[Tensor]" = (),
    least_parity_db: float | None = None,
    latent_mean: Sequence[float] | None = None,
    latent_std: Sequence[float] | None = None,
) -> Path:
    """Write `folder/decoder.pte` for latents of one fixed shape (B, C, t, h, w), float32.

    With `latent_mean` and `latent_std` (C numbers each) the program takes normalised
    latents and computes z * std + mean first. The decoder itself is left as it is.

    Args:
        precision: `fp32`; `fp16`, whose program takes and gives float16; or `int8`, which takes
            and gives float32.
        calibration: of int8, latents of `latent_shape`, in the scale that the program takes.
        least_parity_db: of int8, see `quantise.quantised`.

    Returns:
        The path of the program; it is there in full or not at all.

    Raises:
        ValueError: the shape or the latent scaling does not fit the decoder, there is no such
            precision, or int8 has no calibration.
        ExportError: XNNPACK did not take the whole graph as one subgraph. Nothing may
            stay outside, not even a copy into another memory format: the decoder is
            exported in the default one, in which none is needed.
    """
    import torch

    from turbo_vaed.export.by_frames import by_frames
    from turbo_vaed.export.passes import without_needless_slices, without_steps

    check_latent_scaling(decoder.config.latent_channels, latent_mean, latent_std)
    # Winograd's products are a third fewer; float16 and int8 have too few digits for its sums.
    own = plain(decoder, latent_shape, form="winograd" if precision == "fp32" else "taps")
    if precision == "fp16":
        own = with_epsilons_in_half(own)
    program = scaled(own, latent_mean, latent_std)
    latents = torch.zeros(latent_shape)
    if precision == "fp16":
        for name in _last_layers(own):
            setattr(own, name, _in_two_halves(getattr(own, name)))
        program, latents = program.half(), latents.half()
    with torch.no_grad(), without_treespec_warnings():
        whole = torch.export.export(program, (latents,)).module()
        graph = without_needless_slices(without_steps(whole))
        if precision == "int8":
            from turbo_vaed.export.quantise import quantised

            exported = torch.export.export(graph, (latents,))
            graph = quantised(exported, calibration, least_parity_db=least_parity_db)
            graph = torch.export.export(graph, (latents,)).module()
        elif precision not in ("fp32", "fp16"):
            raise ValueError(f"precision: found {precision!r}, allowed: {', '.join(PRECISIONS)}")
        exported = torch.export.export(by_frames(graph), (latents,))
    buffer = _lower(exported)

    path = Path(folder) / PROGRAM_NAME
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer)
    return path


def _lower(exported: "ExportedProgram") -> bytes:
    # Late: these imports take seconds, and ExecuTorch's talks.
    with quiet_imports():
        from executorch.backends.xnnpack.partition import (  # type: ignore[import-untyped, unused-ignore]
            xnnpack_partitioner,
        )
        from executorch.exir import (  # type: ignore[import-untyped, unused-ignore]
            to_edge_transform_and_lower,
        )

    with mended(), without_treespec_warnings():
        edge = to_edge_transform_and_lower(
            exported, partitioner=[xnnpack_partitioner.XnnpackPartitioner()]
        )
    subgraphs, outside = count_delegation(edge.exported_program())
    if subgraphs != 1 or outside:
        found = ", ".join(f"{count} {name}" for name, count in sorted(outside.items()))
        raise ExportError(
            f"XNNPACK took {subgraphs} subgraphs and left outside: {found or 'nothing'}; "
            f"expected the whole graph as one subgraph. Look for what the decoder computes "
            f"other than by 2-D convolutions, element-wise operations and reshapes"
        )
    with without_treespec_warnings():
        return bytes(edge.to_executorch().buffer)


def _last_layers(decoder: "TurboVaedDecoder") -> list[str]:
    """The convolutions behind the last block: few channels, whose large terms nearly cancel."""
    names = [name for name, _ in decoder.named_children()]
    return [name for name in names if name.startswith("upsampler2d_") or name == "conv_out"]


def _in_two_halves(layer: "FrameConv") -> "nn.Module":
    """The layer as a sum of two in float16: its weights rounded, and what the rounding left.

    They hold the weights to 22 bits instead of 11, for twice the work of a small layer.
    """
    import copy

    import torch
    from torch import Tensor, nn

    class InTwoHalves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rounded, self.rest = copy.deepcopy(layer), copy.deepcopy(layer)
            assert layer.folded is not None
            for exact, near, left in zip(
                layer.folded, self.rounded.folded or (), self.rest.folded or (), strict=True
            ):
                near.data = exact.half()
                left.data = (exact - near.float()).half()

        def forward(self, x: Tensor, time: "Timeline") -> Tensor:
            out: Tensor = self.rounded(x, time) + self.rest(x, time)
            return out

    with torch.no_grad():
        return InTwoHalves()


def count_delegation(exported_program: Any) -> tuple[int, Counter[str]]:
    """Delegated subgraphs of a lowered program, and the operations outside of them by name."""
    outside: Counter[str] = Counter()
    subgraphs = 0
    for node in exported_program.graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", str(node.target))
        if name == "executorch_call_delegate":
            subgraphs += 1
        elif name != "getitem":  # takes an output of a subgraph: no work on the device
            outside[str(node.target)] += 1
    return subgraphs, outside
