"""How good a picture is: one definition of each metric, used everywhere.

Frames are RGB floats in [0, 1], of shape (..., 3, H, W); the data range is 1 and never taken
from the frames themselves. Those that need weights or an extra are imported from their own
modules: `lpips`, `rfvd`, `vmaf`.
"""

from turbo_vaed.metrics.detail import detail
from turbo_vaed.metrics.flicker import flicker, flicker_steps
from turbo_vaed.metrics.frames import frames_from_uint8, uint8_from_network
from turbo_vaed.metrics.intervals import bootstrap
from turbo_vaed.metrics.ms_ssim import ms_ssim, ms_ssim_scales
from turbo_vaed.metrics.psnr import MAX_PSNR_DB, psnr, psnr_from_mse
from turbo_vaed.metrics.ssim import ssim
from turbo_vaed.metrics.summary import (
    BETTER,
    QUALITY,
    Summary,
    clip_quality,
    summarise,
    summarise_quality,
)

__all__ = [
    "BETTER",
    "MAX_PSNR_DB",
    "QUALITY",
    "Summary",
    "bootstrap",
    "clip_quality",
    "detail",
    "flicker",
    "flicker_steps",
    "frames_from_uint8",
    "ms_ssim",
    "ms_ssim_scales",
    "psnr",
    "psnr_from_mse",
    "ssim",
    "summarise",
    "summarise_quality",
    "uint8_from_network",
]
