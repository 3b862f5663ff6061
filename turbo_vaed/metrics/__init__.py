"""How good a picture is: one definition of each metric, used everywhere.

Frames are RGB floats in [0, 1], of shape (..., 3, H, W); the data range is 1 and never taken
from the frames themselves.
"""

from turbo_vaed.metrics.frames import frames_from_uint8, uint8_from_network
from turbo_vaed.metrics.psnr import MAX_PSNR_DB, psnr, psnr_from_mse
from turbo_vaed.metrics.ssim import ms_ssim, ms_ssim_scales, ssim
from turbo_vaed.metrics.summary import QUALITY, Summary, clip_quality, summarise, summarise_quality

__all__ = [
    "MAX_PSNR_DB",
    "QUALITY",
    "Summary",
    "clip_quality",
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
