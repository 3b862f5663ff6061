"""rFVD: the Frechet distance between video features of reconstructions and of their sources.

Unterthiner et al. 2018 (FVD), with the source clips as the real set and their reconstructions
as the generated one. The published features are the 400 logits of I3D on Kinetics-400 (Carreira
and Zisserman 2017); any other function of clips may be given, and figures of different features,
clip lengths or numbers of clips do not compare: few clips bias the distance upwards.

Shapes: B batch, N M clips, D features, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turbo_vaed.metrics.frames import check_pair
from turbo_vaed.metrics.weights import check_published

VideoFeatures = Callable[[Tensor], Tensor]
"""(B, T, 3, H, W) in [0, 1] -> (B, D)."""

I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""Of i3d_torchscript.pt, the port of the original network that StyleGAN-V published."""
I3D_HOME = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt"
I3D_SIDE = 224
I3D_MIN_FRAMES = 10


def rfvd(pairs: Iterable[tuple[Tensor, Tensor]], features: VideoFeatures) -> float:
    """rFVD over all clips of some batches, each (reconstruction, source) of (B, T, 3, H, W).

    0 for identical sets, no upper end; lower is better. Batches are taken one at a time.

    Raises:
        ValueError: frames that are not in [0, 1] or not of (B, T, 3, H, W), features that are
            not finite or not of (B, D), fewer than two clips in all.
    """
    made: list[Tensor] = []
    real: list[Tensor] = []
    for frames, reference in pairs:
        check_pair(frames, reference)
        if frames.dim() != 5:
            raise ValueError(
                f"frames: found shape {tuple(frames.shape)}, expected clips of (B, T, 3, H, W)"
            )
        for clips, kept in ((frames, made), (reference, real)):
            with torch.inference_mode():
                found = features(clips)
            if found.dim() != 2 or len(found) != len(clips):
                raise ValueError(
                    f"features: found shape {tuple(found.shape)} for {len(clips)} clips, "
                    "expected (clips, features)"
                )
            kept.append(found.double().cpu())
    if not made:
        raise ValueError("pairs: found no clips, expected at least two")
    return frechet_distance(torch.cat(made), torch.cat(real))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance of Gaussians fitted to two sets of features, (N, D) and (M, D).

    |mean x - mean y|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)) with covariances over N - 1, as Heusel
    et al. 2017 define it. With Sx = A'A and Sy = B'B the trace of the root is the sum of the
    singular values of A B': no root of a matrix is taken, and covariances of deficient rank,
    which fewer clips than features have, are exact.

    Raises:
        ValueError: not two dimensions, different D, fewer than two rows, values not finite.
    """
    for name, rows in (("x", x), ("y", y)):
        if rows.dim() != 2 or len(rows) < 2:
            raise ValueError(
                f"{name}: found shape {tuple(rows.shape)}, expected (clips, features), two or more"
            )
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name}: found features that are not finite")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y: found {x.shape[1]} and {y.shape[1]} features, expected as many")
    x, y = x.double(), y.double()
    a, b = _root_of_covariance(x), _root_of_covariance(y)
    means = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    cross = torch.linalg.svdvals(a @ b.mT).sum()
    return max(0.0, float(means + a.square().sum() + b.square().sum() - 2 * cross))


def load_i3d(
    path: Path, *, sha256: str = I3D_SHA256, device: torch.device | str = "cpu"
) -> VideoFeatures:
    """The features of a TorchScript I3D file, by default the published one, on a device.

    A TorchScript file is a program, so that nothing of it is read before its hash is right. It
    is called as the published one is: (B, 3, T, 224, 224) in [-1, 1], `rescale=False`,
    `resize=False`, `return_features=True`. Frames are resized bilinearly, whatever their shape.

    Raises:
        UserError: there is no such file, or its hash is another; says where to get it.
    """
    path = Path(path)
    check_published(path, sha256, f"rFVD needs I3D as published at {I3D_HOME}")
    jit: Any = torch.jit  # without types of its own
    network = jit.load(str(path), map_location=device).eval()

    def features(clips: Tensor) -> Tensor:
        batch, frames = clips.shape[:2]
        if frames < I3D_MIN_FRAMES:
            raise ValueError(f"clips: found {frames} frames, I3D needs at least {I3D_MIN_FRAMES}")
        flat = clips.to(device).flatten(0, 1).float()
        sized = F.interpolate(flat, size=(I3D_SIDE, I3D_SIDE), mode="bilinear")
        video = sized.reshape(batch, frames, *sized.shape[1:]).transpose(1, 2) * 2 - 1
        found: Tensor = network(video, rescale=False, resize=False, return_features=True)
        return found

    return features


def _root_of_covariance(rows: Tensor) -> Tensor:
    """R of at most (D, D) with R'R the covariance of (N, D) rows."""
    centred = (rows - rows.mean(dim=0)) / (len(rows) - 1) ** 0.5
    root: Tensor = torch.linalg.qr(centred, mode="r").R
    return root
