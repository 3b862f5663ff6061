"""float16 and int8 for XNNPACK: half and a quarter of the size, one subgraph, and close enough."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.export.small import short_decoder
from turbo_vaed.devices._runtimes import open_program
from turbo_vaed.export import _executorch_shuffle, by_frames, executorch, export_xnnpack
from turbo_vaed.export._executorch_shuffle import by_one_copy
from turbo_vaed.export.quantise import kept_in_float, mse_from_psnr
from turbo_vaed.models import TurboVaedDecoder
from turbo_vaed.models.layers import MIN_WINOGRAD_CHANNELS, FrameConv

pytestmark = pytest.mark.slow

SHAPE = (1, 8, 2, 6, 6)
ROOT = Path(__file__).resolve().parents[2]


def latents(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def make() -> TurboVaedDecoder:
    decoder = short_decoder()
    with torch.no_grad():  # a video in about [-1, 1], as of a trained one
        scale = decoder(latents(0)).std() / 0.4
        decoder.conv_out.conv.weight /= scale
        decoder.conv_out.conv.bias /= scale
    return decoder


@pytest.fixture(scope="module")
def decoder() -> TurboVaedDecoder:
    return make()


@pytest.fixture(scope="module")
def laid_out() -> dict[str, list[tuple[str, int]]]:
    """What each of `programs` is made of after ExecuTorch's layout pass: the name of each
    operation, and how many numbers it puts out."""
    return {}


@pytest.fixture(scope="module")
def programs(decoder, laid_out, tmp_path_factory) -> dict[str, Path]:
    """One of each precision. `_lower` refuses more than one subgraph, or a rest outside."""
    found: list[tuple[str, int]] = []

    def watched(lay_out):
        mended = by_one_copy(lay_out)

        def call(self, module):
            result = mended(self, module)
            nodes = [n for n in result.graph_module.graph.nodes if n.op == "call_function"]
            tensors = [n for n in nodes if isinstance(n.meta["val"], torch.Tensor)]
            found.extend((n.target.__name__, n.meta["val"].numel()) for n in tensors)
            return result

        return call

    made = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_executorch_shuffle, "by_one_copy", watched)
        for precision in executorch.PRECISIONS:
            found.clear()
            made[precision] = export(decoder, tmp_path_factory.mktemp(precision), precision)
            laid_out[precision] = list(found)
    return made


def export(decoder: TurboVaedDecoder, folder: Path, precision: str) -> Path:
    """In int8 frame by frame, as large tensors are: it has all operations of the other precisions,
    and the roundings."""
    least_bytes = 4000 if precision == "int8" else by_frames.LEAST_BYTES
    taken_apart = partial(by_frames.by_frames, least_bytes=least_bytes)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(by_frames, "by_frames", taken_apart)
        return export_xnnpack(
            decoder,
            latent_shape=SHAPE,
            folder=folder,
            precision=precision,
            calibration=[latents(k) for k in range(1, 4)],
            least_parity_db=40.0,
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_memory_layout_changes_only_at_the_end(decoder, programs, laid_out, precision):
    """A shuffle costs one copy, and a change of width none."""
    names = [name for name, _ in laid_out[precision]]
    turned = [size for name, size in laid_out[precision] if name == "aten._to_copy.default"]
    assert len([size for size in turned if size > math.prod(SHAPE)]) == 1, "the video"
    convs = [m for m in decoder.modules() if isinstance(m, FrameConv)]
    shuffles = sum(conv.upscale * conv.time_factor > 1 for conv in convs)
    assert shuffles >= 2
    times = 2 if precision == "fp16" else 1  # whose last layers are two of each
    assert shuffles + 2 <= names.count("aten.permute_copy.default") <= times * shuffles + 2
    assert not [name for name in names if "shuffle" in name]


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100), ("fp16", 50), ("int8", 40)])
def test_programs_are_close_to_pytorch(decoder, programs, precision, least_db):
    run = open_program("executorch-xnnpack", programs[precision], 1)
    given = latents(9)
    video = run(given.numpy())
    with torch.no_grad():
        expected = decoder(given).numpy()
    assert video.dtype == np.float32
    mse = float(((video.astype(float) - expected) ** 2).mean())
    assert 10 * math.log10(4 / mse) >= least_db


def test_int8_was_lowered_frame_by_frame(laid_out, programs):
    names = {p: [name for name, _ in laid_out[p]] for p in programs}
    convs = {p: names[p].count("aten.convolution.default") for p in programs}
    assert convs["int8"] > 1.5 * convs["fp32"]


def test_float16_divides_by_no_zero_where_values_are_nearly_equal(tmp_path, monkeypatch):
    """Squares of what is below 1/4096 are nothing in float16, and so was the norms' epsilon."""
    decoder, lowered = make(), []
    with torch.no_grad():
        decoder.conv_in.conv.weight *= 1e-5
        decoder.conv_in.conv.bias *= 0
    monkeypatch.setattr(executorch, "_lower", lambda exported: lowered.append(exported) or b"")
    export_xnnpack(decoder, latent_shape=SHAPE, folder=tmp_path, precision="fp16")
    with torch.no_grad():
        video = lowered[0].module()(latents(9).half())
    assert video.dtype == torch.float16 and video.isfinite().all()


def test_float16_is_half_of_the_weights_and_int8_a_quarter(decoder, programs):
    """Of float32's file by Winograd it is less."""
    sizes = {name: path.stat().st_size for name, path in programs.items()}
    whole = 4 * sum(weights.numel() for weights in decoder.parameters())
    assert sizes["fp16"] <= 0.53 * whole
    assert sizes["int8"] <= 0.35 * whole, "a quarter, and what has the scales and the graph"
    wide = [
        m.conv.weight.numel()
        for m in decoder.modules()
        if isinstance(m, FrameConv) and m.taps == 3 and m.conv.in_channels >= MIN_WINOGRAD_CHANNELS
    ]
    assert wide and sizes["fp32"] == pytest.approx(whole + 4 * sum(wide) / 3, rel=0.1)
    assert sizes["fp32"] > 1.15 * whole, "four kernels for three"


def test_all_layers_are_int8_where_no_parity_is_required(decoder, tmp_path, monkeypatch):
    lowered = []
    monkeypatch.setattr(executorch, "_lower", lambda exported: lowered.append(exported) or b"")
    export_xnnpack(
        decoder, latent_shape=SHAPE, folder=tmp_path, precision="int8", calibration=[latents(1)]
    )
    tensors = [*lowered[0].state_dict.values(), *lowered[0].constants.values()]
    in_int8 = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.int8)
    assert in_int8 >= 0.9 * sum(weights.numel() for weights in decoder.parameters())


def test_an_export_leaves_the_library_unpatched(programs):
    from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import (
        ChannelsLastTaggedReshapePass,
    )
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor

    assert NodeVisitor.define_tensor.__module__.startswith("executorch.")
    assert ChannelsLastTaggedReshapePass.input_to_nhwc.__module__.startswith("executorch.")


@pytest.mark.parametrize(
    ("precision", "message"), [("int8", "calibration: found no"), ("fp8", "found 'fp8'")]
)
def test_an_export_without_calibration_or_of_an_unknown_precision_is_refused(
    decoder, tmp_path, precision, message
):
    with pytest.raises(ValueError, match=message):
        export_xnnpack(decoder, latent_shape=SHAPE, folder=tmp_path, precision=precision)


def test_the_same_decoder_gives_the_same_bytes_in_another_process(programs, tmp_path):
    """int8, the one with most to differ in: ranges are sums, and layers are ranked by them."""
    code = (
        "import sys, torch; torch.set_num_threads(2)\n"
        "from pathlib import Path\n"
        "from tests.export.test_precisions import export, make\n"
        "export(make(), Path(sys.argv[1]), 'int8')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "17", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    path = programs["int8"]
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


LAYERS = st.dictionaries(
    st.text("abcdef", min_size=1), st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1
)


@given(LAYERS, st.floats(1e-6, 1))
def test_no_layer_stays_in_float_without_need(layers, most):
    mse_alone = {name: mse for name, (mse, _) in layers.items()}
    weights = {name: count for name, (_, count) in layers.items()}
    kept = kept_in_float(mse_alone, weights, most_mse=most)
    assert sum(mse for name, mse in mse_alone.items() if name not in kept) <= most
    for name in kept:
        assert sum(m for n, m in mse_alone.items() if n not in kept - {name}) > most


def test_a_small_layer_stays_in_float_rather_than_a_large_one():
    mse_alone, weights = {"large": 3.0, "small": 2.0}, {"large": 1000, "small": 10}
    assert kept_in_float(mse_alone, weights, most_mse=3.5) == {"small"}
    assert kept_in_float(mse_alone, weights, most_mse=2.5) == {"large"}


def test_decibels_of_a_video_in_minus_one_to_one():
    assert mse_from_psnr(10 * math.log10(4)) == pytest.approx(1.0)


def test_a_single_frame_can_be_exported(tmp_path):
    decoder, one = short_decoder(12), (*SHAPE[:2], 1, *SHAPE[3:])
    path = export_xnnpack(decoder, latent_shape=one, folder=tmp_path)
    given = latents(9)[:, :, :1].contiguous()
    video = open_program("executorch-xnnpack", path, 1)(given.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(video, decoder(given).numpy(), atol=1e-4)
