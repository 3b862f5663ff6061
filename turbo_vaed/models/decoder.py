"""The Turbo-VAED student decoder (arXiv 2508.09136).

Shapes: B batch, C channels, T video frames, t latent frames, H W video, h w latent.
Inside, frames are folded into the batch with time outermost, (T*B, C, H, W), and there are
2-D operations only (`layers.py` says why and how), so that what is trained is what is
exported. Checkpoints keep the published names and 3-D weight layouts.

    latents -> conv_in -> mid_block -> up_blocks -> patch upsampling -> norm, SiLU, conv_out
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.layers import (
    Form,
    FrameConv,
    LayerNorm,
    RmsNorm,
    SeparableConv,
    fold,
    fold_frames,
    relu,
    silu,
    unfold_frames,
)
from turbo_vaed.models.timeline import Timeline, Whole

Step = Callable[[Tensor, Timeline], Tensor]
"""A layer: frames (T*B, C, H, W) and where they stand in time -> frames."""


class ResBlock(nn.Module):
    """norm, activation, convolution, twice, plus the (projected) input.

    `is_relu_first`: the published blocks after an upsampling begin with a ReLU for a SiLU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        separable_size: int | None,
        norm_eps: float,
        is_relu_first: bool = False,
    ) -> None:
        super().__init__()
        self.first_activation = relu if is_relu_first else silu
        self.norm1, self.norm2 = RmsNorm(inputs), RmsNorm(outputs)
        self.conv1 = _conv(inputs, outputs, separable_size)
        self.conv2 = _conv(outputs, outputs, separable_size)
        self.norm3 = LayerNorm(inputs, norm_eps) if inputs != outputs else None
        self.conv_shortcut = _conv(inputs, outputs, separable_size, size=1) if self.norm3 else None

    def forward(self, x: Tensor, time: Timeline) -> Tensor:
        """(T*B, inputs, H, W) -> (T*B, outputs, H, W)."""
        y: Tensor = self.conv1(self.first_activation(self.norm1(x)), time)
        y = self.conv2(silu(self.norm2(y)), time)
        x = time.align(x, y)
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x), time)
        return y.add_(x)


def _conv(
    inputs: int, outputs: int, separable_size: int | None, size: int = 3
) -> FrameConv | SeparableConv:
    if separable_size is None:
        return FrameConv(inputs, outputs, taps=size, size=size)
    return SeparableConv(inputs, outputs, size=1 if size == 1 else separable_size)


class Upsampler(nn.Module):
    """Twice the height and width and `time_factor` times the frames, by one convolution."""

    def __init__(self, channels: int, time_factor: int, keeps_first_frames: bool) -> None:
        super().__init__()
        self.dropped = 0 if keeps_first_frames else time_factor - 1
        self.time_factor = time_factor
        self.conv = FrameConv(
            channels, channels * 4 * time_factor, upscale=2, time_factor=time_factor
        )

    def forward(self, x: Tensor, time: Timeline) -> Tensor:
        """(T*B, C, H, W) -> ((time_factor*T - dropped)*B, C, 2H, 2W)."""
        return time.drop_first(self.conv(x, time), self.dropped)


class MidBlock(nn.Module):
    """Residual blocks at the deepest level."""

    def __init__(self, resnets: list[ResBlock]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)


class UpBlock(nn.Module):
    """One level: change of width, then upsampling, then residual blocks; the first two optional."""

    def __init__(
        self, conv_in: ResBlock | None, upsampler: Upsampler | None, resnets: list[ResBlock]
    ) -> None:
        super().__init__()
        self.conv_in = conv_in
        self.upsamplers = nn.ModuleList([upsampler] if upsampler else [])
        self.resnets = nn.ModuleList(resnets)

    def steps(self) -> list[Step]:
        """The layers in order."""
        return [*([self.conv_in] if self.conv_in else []), *self.upsamplers, *self.resnets]


class DecodedWithFeatures(NamedTuple):
    """Video (B, 3, T, H, W), and hidden states (B, C, ?, ?, ?) by block name."""

    video: Tensor
    features: dict[str, Tensor]


class TurboVaedDecoder(nn.Module):
    """The student decoder: latents (B, C, t, h, w) to video (B, 3, T, H, W).

    The video is the raw output: roughly in [-1, 1], not clamped. Latents are in the
    teacher's own scale (what its encoder emits), not in the diffusion model's.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.decoder_block_out_channels[::-1]
        layers = config.decoder_layers_per_block[::-1]
        kernels = [
            config.decoder_dw_kernel_size if separable else None
            for separable in config.decoder_is_dw_conv[::-1]
        ]
        scales = config.spatio_temporal_scaling[::-1]
        factors = config.temporal_factors[::-1]

        def block(inputs: int, outputs: int, level: int, is_relu_first: bool = False) -> ResBlock:
            return ResBlock(
                inputs,
                outputs,
                separable_size=kernels[level],
                norm_eps=config.resnet_norm_eps,
                is_relu_first=is_relu_first,
            )

        self.conv_in = FrameConv(config.latent_channels, widths[0])
        self.mid_block = MidBlock([block(widths[0], widths[0], 0) for _ in range(layers[0])])
        self.up_blocks = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            conv_in = block(before, width, i + 1) if before != width else None
            upsampler = Upsampler(width, factors[i], config.is_video_dc_ae) if scales[i] else None
            resnets = [block(width, width, i + 1, scales[i]) for _ in range(layers[i + 1])]
            self.up_blocks.append(UpBlock(conv_in, upsampler, resnets))
            before = width

        # Patches of 2 or 4 are undone by one or two per-frame upsamplings by 2.
        self.patch_norms = nn.ModuleList()
        for i in range(config.patch_size.bit_length() - 1):
            self.patch_norms.append(RmsNorm(before))
            upsampler2d = FrameConv(before, before, taps=1, upscale=2, published_rank=4)
            self.add_module(f"upsampler2d_{i + 1}", upsampler2d)
            before //= 4
        self.norm_out = RmsNorm(before)
        self.conv_out = FrameConv(before, config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, 3, T, H, W), roughly [-1, 1]; sizes by `config.video_shape`.

        Raises:
            ValueError: the latents are not of five dimensions with the config's channels, not
                of the weights' dtype, or not finite.
        """
        batch = self.check(latents)
        for name, x in self.states(fold_frames(latents), Whole(batch)):
            if name == "video":
                return unfold_frames(x, batch)
        raise AssertionError("the last state is the video")

    def decode_with_features(self, latents: Tensor) -> DecodedWithFeatures:
        """As `forward`, and the hidden states after `mid_block`, `up_block_0`, ..."""
        batch = self.check(latents)
        named = self.states(fold_frames(latents), Whole(batch))
        states = {name: unfold_frames(x, batch) for name, x in named}
        return DecodedWithFeatures(states.pop("video"), states)

    def states(self, x: Tensor, time: Timeline) -> Iterator[tuple[str, Tensor]]:
        """The state (T*B, C, H, W) after each block, by its name; the last is the video."""
        for name, steps in self.blocks():
            for step in steps:
                x = step(x, time)
            yield name, x

    def blocks(self) -> Iterator[tuple[str, list[Step]]]:
        """The decoder as a list of lists: the steps of each block, in order."""
        yield "mid_block", [self.conv_in, *self.mid_block.resnets]
        for i, up_block in enumerate(self.up_blocks):
            assert isinstance(up_block, UpBlock)
            yield f"up_block_{i}", up_block.steps()
        pairs = zip(self.patch_norms, self.patch_upsamplers(), strict=True)
        patches = [partial(_activated, norm, upsampler2d) for norm, upsampler2d in pairs]
        yield "video", [*patches, partial(_activated, self.norm_out, self.conv_out)]

    def patch_upsamplers(self) -> "list[FrameConv]":
        """The last upsamplings, frame by frame."""
        names = [f"upsampler2d_{i}" for i in range(1, len(self.patch_norms) + 1)]
        return cast("list[FrameConv]", [self.get_submodule(name) for name in names])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the latents that it takes."""
        return next(self.parameters()).dtype

    def check(self, latents: Tensor) -> int:
        """The batch size of latents; a ValueError where they are not what `forward` takes."""
        channels = self.config.latent_channels
        if latents.dim() != 5 or latents.shape[1] != channels or latents.numel() == 0:
            raise ValueError(
                f"latents: found shape {tuple(latents.shape)}, allowed: "
                f"(B, {channels}, t, h, w), none of them 0"
            )
        if latents.dtype != self.dtype and not torch.is_autocast_enabled(latents.device.type):
            raise ValueError(
                f"latents: found {latents.dtype}, allowed: {self.dtype}, as the decoder's weights"
            )
        is_known = not (torch.compiler.is_compiling() or latents.is_meta)
        if is_known and not latents.isfinite().all():
            raise ValueError(
                "latents: found NaN or infinity, allowed: finite numbers; look at what made them"
            )
        return latents.shape[0]

    def for_inference(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        form: Form = "winograd",
        memory_format: torch.memory_format = torch.channels_last,
    ) -> "TurboVaedDecoder":
        """A copy with its 2-D kernels made once: faster, not to be trained or saved.

        Raises:
            ValueError: float16, in which the norms overflow and their epsilon vanishes; or this
                decoder was made for inference itself.
        """
        if dtype == torch.float16:
            raise ValueError("dtype: found float16, allowed: bfloat16, float32 or float64")
        self._check_has_weights()
        decoder = copy.deepcopy(self).eval().requires_grad_(False)
        for layer in list(decoder.modules()):
            if isinstance(layer, FrameConv | SeparableConv):
                fold(layer, form, memory_format)
        return decoder.to(dtype)

    def published_state_dict(self) -> dict[str, Tensor]:
        """Weights under their published names (`decoder.` first).

        Raises:
            ValueError: it was made for inference, and has the published weights no more.
        """
        self._check_has_weights()
        return {f"decoder.{name}": tensor.detach() for name, tensor in self.state_dict().items()}

    def _check_has_weights(self) -> None:
        if self.conv_in.folded is not None:
            raise ValueError(
                "this decoder was made for inference; take the one that it was made from"
            )

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take published weights; what is not the decoder's (see below) is left alone.

        Keys without `decoder.` that a published checkpoint holds, alignment heads and
        latent statistics, are skipped. Nothing is loaded where anything is wrong.

        Raises:
            ValueError: keys are missing or unexpected, or a tensor has another shape; it
                lists them.
        """
        skipped = ("aligned_feature_projection_heads.", "latents_mean", "latents_std")
        given = {k: v for k, v in state_dict.items() if not k.startswith(skipped)}
        wanted = self.published_state_dict()
        wrong = [
            f"{key}: found shape {tuple(given[key].shape)}, allowed: {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in given and given[key].shape != tensor.shape
        ]
        for what, keys in (
            ("missing", wanted.keys() - given.keys()),
            ("unexpected", given.keys() - wanted.keys()),
        ):
            if keys:
                wrong.append(f"{what}: {', '.join(sorted(keys))}")
        if wrong:
            raise ValueError("these weights do not fit the config; " + "; ".join(wrong))
        self.load_state_dict({key.removeprefix("decoder."): given[key] for key in wanted})


def _activated(norm: nn.Module, conv: nn.Module, x: Tensor, time: Timeline) -> Tensor:
    out: Tensor = conv(silu(norm(x)), time)
    return out
