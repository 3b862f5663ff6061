"""The Turbo-VAED student decoder (arXiv 2508.09136).

Shapes: B batch, C channels, T video frames, t latent frames, H W video, h w latent.
Inside, frames are folded into the batch with time outermost, (T*B, C, H, W), and there are
2-D operations only (`layers.py` says why and how), so that what is trained is what is
exported. Checkpoints keep the published names and 3-D weight layouts.

    latents -> conv_in -> mid_block -> up_blocks -> patch upsampling -> norm, SiLU, conv_out
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models.config import DecoderConfig
from turbo_vaed.models.layers import (
    FrameConv,
    LayerNorm,
    RmsNorm,
    SeparableConv,
    fold_frames,
    unfold_frames,
)


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
        self.first_activation = F.relu if is_relu_first else F.silu
        self.norm1, self.norm2 = RmsNorm(inputs), RmsNorm(outputs)
        self.conv1 = _conv(inputs, outputs, separable_size)
        self.conv2 = _conv(outputs, outputs, separable_size)
        self.norm3 = LayerNorm(inputs, norm_eps) if inputs != outputs else None
        self.conv_shortcut = _conv(inputs, outputs, separable_size, size=1) if self.norm3 else None

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """(T*B, inputs, H, W) -> (T*B, outputs, H, W)."""
        y = self.conv1(self.first_activation(self.norm1(x)), batch)
        y = self.conv2(F.silu(self.norm2(y)), batch)
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x), batch)
        out: Tensor = x + y
        return out


def _conv(inputs: int, outputs: int, separable_size: int | None, size: int = 3) -> nn.Module:
    if separable_size is None:
        return FrameConv(inputs, outputs, taps=size, size=size)
    return SeparableConv(inputs, outputs, size=1 if size == 1 else separable_size)


class Upsampler(nn.Module):
    """Twice the height and width and `time_factor` times the frames, by one convolution."""

    def __init__(self, channels: int, time_factor: int, keeps_first_frames: bool) -> None:
        super().__init__()
        self.dropped = 0 if keeps_first_frames else time_factor - 1
        self.time_factor = time_factor
        self.conv = FrameConv(channels, channels * 4 * time_factor, time_factor=time_factor)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """(T*B, C, H, W) -> ((time_factor*T - dropped)*B, C, 2H, 2W)."""
        frames, channels = x.shape[0] // batch, x.shape[1]
        x = F.pixel_shuffle(self.conv(x, batch), 2)
        if self.time_factor > 1:
            height, width = x.shape[2:]
            x = x.reshape(frames, batch, self.time_factor, -1).transpose(1, 2)
            x = x.reshape(frames * self.time_factor * batch, channels, height, width)
        return x[self.dropped * batch :]


class MidBlock(nn.Module):
    """Residual blocks at the deepest level."""

    def __init__(self, resnets: list[ResBlock]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, batch)
        return x


class UpBlock(nn.Module):
    """One level: change of width, then upsampling, then residual blocks; the first two optional."""

    def __init__(
        self, conv_in: ResBlock | None, upsampler: Upsampler | None, resnets: list[ResBlock]
    ) -> None:
        super().__init__()
        self.conv_in = conv_in
        self.upsamplers = nn.ModuleList([upsampler] if upsampler else [])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        if self.conv_in is not None:
            x = self.conv_in(x, batch)
        for layer in (*self.upsamplers, *self.resnets):
            x = layer(x, batch)
        return x


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
        spatial = config.decoder_spatio_only[::-1]

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
            factor = 1 if spatial[i] else 2
            upsampler = Upsampler(width, factor, config.is_video_dc_ae) if scales[i] else None
            resnets = [block(width, width, i + 1, scales[i]) for _ in range(layers[i + 1])]
            self.up_blocks.append(UpBlock(conv_in, upsampler, resnets))
            before = width

        # Patches of 2 or 4 are undone by one or two per-frame upsamplings by 2.
        self.patch_norms = nn.ModuleList()
        self.patch_upsamplers = nn.ModuleList()
        for _ in range(config.patch_size.bit_length() - 1):
            self.patch_norms.append(RmsNorm(before))
            self.patch_upsamplers.append(FrameConv(before, before, taps=1, published_rank=4))
            before //= 4
        self.norm_out = RmsNorm(before)
        self.conv_out = FrameConv(before, config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, t, h, w) -> (B, 3, T, H, W), roughly [-1, 1]; sizes by `config.video_shape`.

        Raises:
            ValueError: the latents are not of five dimensions with the config's channels.
        """
        for name, x in self._states(latents):
            if name == "video":
                return unfold_frames(x, latents.shape[0])
        raise AssertionError("the last state is the video")

    def decode_with_features(self, latents: Tensor) -> DecodedWithFeatures:
        """As `forward`, and the hidden states after `mid_block`, `up_block_0`, ..."""
        states = {name: unfold_frames(x, latents.shape[0]) for name, x in self._states(latents)}
        return DecodedWithFeatures(states.pop("video"), states)

    def _states(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The state (T*B, C, H, W) after each block, by its name; the last is the video."""
        channels = self.config.latent_channels
        if latents.dim() != 5 or latents.shape[1] != channels or latents.numel() == 0:
            raise ValueError(
                f"latents: found shape {tuple(latents.shape)}, allowed: "
                f"(B, {channels}, t, h, w), none of them 0"
            )
        batch = latents.shape[0]
        x = self.mid_block(self.conv_in(fold_frames(latents), batch), batch)
        yield "mid_block", x
        for i, up_block in enumerate(self.up_blocks):
            x = up_block(x, batch)
            yield f"up_block_{i}", x
        for norm, upsample in zip(self.patch_norms, self.patch_upsamplers, strict=True):
            x = F.pixel_shuffle(upsample(F.silu(norm(x)), batch), 2)
        yield "video", self.conv_out(F.silu(self.norm_out(x)), batch)

    def published_state_dict(self) -> dict[str, Tensor]:
        """Weights under their published names (`decoder.` first) and in their published layout."""
        return {
            f"decoder.{_published_name(name)}.{key}": tensor.detach().contiguous()
            for name, layer in self._layers()
            for key, tensor in layer.published().items()
        }

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
        with torch.no_grad():
            for name, layer in self._layers():
                prefix = f"decoder.{_published_name(name)}."
                layer.load({key: given[prefix + key] for key in layer.published()})

    def _layers(self) -> Iterator[tuple[str, FrameConv | SeparableConv | LayerNorm]]:
        for name, module in self.named_modules():
            if isinstance(module, FrameConv | SeparableConv | LayerNorm):
                yield name, module

    @classmethod
    def from_pretrained(cls, folder: Path) -> "TurboVaedDecoder":
        """Read a folder that `save_pretrained` wrote, or one with published files so named.

        Raises:
            FileNotFoundError: config.json or model.safetensors is not there.
            ValueError: one of them is damaged, or the two do not belong together.
        """
        from turbo_vaed.models.checkpoint import read_folder

        config, weights = read_folder(folder)
        decoder = cls(config)
        try:
            decoder.load_published(weights)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        return decoder

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors (published names and layouts, float32)."""
        from turbo_vaed.models.checkpoint import write_folder

        write_folder(folder, self.config, self.published_state_dict())


def _published_name(name: str) -> str:
    """`patch_upsamplers.0` is published as `upsampler2d_1`; all other names agree."""
    head, _, index = name.partition(".")
    return f"upsampler2d_{int(index) + 1}" if head == "patch_upsamplers" else name
