"""The student decoder written plainly, as published: 3-D convolutions on (B, C, T, H, W).

The baseline that `bench/decode.py` compares with, and a second opinion in the tests. Its state
dict has the published names (without `decoder.`), so published weights load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from turbo_vaed.models import DecoderConfig


class Conv(nn.Module):
    """3-D convolution; time padded by repeating the border frames, space by zeros."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, groups: int = 1) -> None:
        super().__init__()
        self.reach = size // 2
        self.conv = nn.Conv3d(
            inputs, outputs, size, padding=(0, self.reach, self.reach), groups=groups
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.reach:
            first = x[:, :, :1].expand(-1, -1, self.reach, -1, -1)
            last = x[:, :, -1:].expand(-1, -1, self.reach, -1, -1)
            x = torch.cat([first, x, last], dim=2)
        return self.conv(x)


class SeparableConv(nn.Module):
    """Depthwise, then pointwise."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.reach = size // 2
        padding = (0, self.reach, self.reach)
        self.depthwise_conv = nn.Conv3d(inputs, inputs, size, padding=padding, groups=inputs)
        self.pointwise_conv = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.reach:
            first = x[:, :, :1].expand(-1, -1, self.reach, -1, -1)
            last = x[:, :, -1:].expand(-1, -1, self.reach, -1, -1)
            x = torch.cat([first, x, last], dim=2)
        return self.pointwise_conv(self.depthwise_conv(x))


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=1, keepdim=True) + 1e-8)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int | None, eps: float, relu: bool):
        super().__init__()

        def conv(before: int, size: int = 3) -> nn.Module:
            if kernel is None:
                return Conv(before, outputs, size)
            return SeparableConv(before, outputs, 1 if size == 1 else kernel)

        self.first_activation = F.relu if relu else F.silu
        self.conv1, self.conv2 = conv(inputs), conv(outputs)
        self.norm3 = nn.LayerNorm(inputs, eps) if inputs != outputs else None
        self.conv_shortcut = conv(inputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.first_activation(rms_norm(x)))
        y = self.conv2(F.silu(rms_norm(y)))
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        return x + y


class Upsampler(nn.Module):
    def __init__(self, channels: int, factor: int, keeps_first_frames: bool) -> None:
        super().__init__()
        self.factor, self.dropped = factor, 0 if keeps_first_frames else factor - 1
        self.conv = Conv(channels, channels * factor * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, _, t, h, w = x.shape
        x = x.reshape(b, -1, 2, 2, self.factor, t, h, w)
        x = x.permute(0, 1, 5, 4, 6, 2, 7, 3).reshape(b, -1, t * self.factor, 2 * h, 2 * w)
        return x[:, :, self.dropped :]


class Block(nn.Module):
    def __init__(self, conv_in: nn.Module | None, upsampler: nn.Module | None, resnets: list):
        super().__init__()
        self.conv_in = conv_in
        self.upsamplers = nn.ModuleList([upsampler] if upsampler else [])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor) -> Tensor:
        for layer in ([self.conv_in] if self.conv_in else []), self.upsamplers, self.resnets:
            for module in layer:
                x = module(x)
        return x


class Conv2d(nn.Module):
    """A convolution frame by frame, under its published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        x = F.pixel_shuffle(self.conv(x.transpose(1, 2).reshape(b * t, c, h, w)), 2)
        return x.reshape(b, t, -1, 2 * h, 2 * w).transpose(1, 2)


class PlainDecoder(nn.Module):
    """latents (B, C, t, h, w) -> video (B, 3, T, H, W)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        widths = config.decoder_block_out_channels[::-1]
        layers = config.decoder_layers_per_block[::-1]
        kernels = [
            config.decoder_dw_kernel_size if separable else None
            for separable in config.decoder_is_dw_conv[::-1]
        ]
        scales, factors = config.spatio_temporal_scaling[::-1], config.temporal_factors[::-1]

        def res(inputs: int, outputs: int, level: int, relu: bool = False) -> ResBlock:
            return ResBlock(inputs, outputs, kernels[level], config.resnet_norm_eps, relu)

        self.conv_in = Conv(config.latent_channels, widths[0])
        self.mid_block = Block(None, None, [res(widths[0], widths[0], 0) for _ in range(layers[0])])
        self.up_blocks = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            upsampler = Upsampler(width, factors[i], config.is_video_dc_ae)
            self.up_blocks.append(
                Block(
                    res(before, width, i + 1) if before != width else None,
                    upsampler if scales[i] else None,
                    [res(width, width, i + 1, scales[i]) for _ in range(layers[i + 1])],
                )
            )
            before = width
        self.patches = config.patch_size.bit_length() - 1
        for i in range(self.patches):
            setattr(self, f"upsampler2d_{i + 1}", Conv2d(before))
            before //= 4
        self.conv_out = Conv(before, config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        for i in range(self.patches):
            x = getattr(self, f"upsampler2d_{i + 1}")(F.silu(rms_norm(x)))
        return self.conv_out(F.silu(rms_norm(x)))
