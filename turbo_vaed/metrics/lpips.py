"""LPIPS, the learned perceptual distance: VGG16, version 0.1.

Zhang et al. 2018: features of five depths of VGG16, each scaled to unit length over its
channels; their squared differences, weighted per channel by heads trained on people's judgments,
averaged over the frame and summed over depths. The same numbers as the package lpips 0.1.4 with
`net="vgg"`, without torchvision. The weights come from a file, see `Lpips.from_file`, or where it
is asked for from the network, see `Lpips.from_hub`.

Shapes: B batch, T frames, N frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from turbo_vaed.errors import CorruptFile, Unreachable, UserError
from turbo_vaed.metrics.frames import check_pair
from turbo_vaed.metrics.weights import check_published
from turbo_vaed.runtime.files import atomic_file

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Of each depth of VGG16; its last one, rectified, is what is compared."""
MIN_SIDE = 16
"""Halved four times it is one pixel."""
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of R, G and B in [-1, 1], over ImageNet."""
EPSILON = 1e-10

VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
HEADS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
HEADS_URL = (
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth"
)
HOW_TO_GET = (
    "get vgg16-397923af.pth (torchvision's IMAGENET1K_V1 weights of VGG16, 528 MB) and "
    "lpips/weights/v0.1/vgg.pth (7 kB, inside the package lpips 0.1.4; `pip download --no-deps "
    "lpips==0.1.4` fetches it), then run: python -c 'from turbo_vaed.metrics.lpips import "
    'convert_published as c; c("vgg16-397923af.pth", "vgg.pth", "lpips-vgg.safetensors")\''
)


class Lpips(nn.Module):
    """(N, 3, H, W) twice, in [0, 1] -> (N,) distances from 0, differentiable in both.

    A loss as well as a metric: the range is not checked here, since a student's output leaves
    it, and no weight of its own ever takes a gradient.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = _vgg16_features()
        self.heads = nn.ParameterList([torch.zeros(channels) for channels in CHANNELS])
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path) -> Lpips:
        """The network with the weights of a safetensors file of `convert_published`.

        Raises:
            UserError: there is no such file (says how to make it), or it holds other weights.
            CorruptFile: it is no whole safetensors file; pickled weights are not read.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file; LPIPS needs its weights: {HOW_TO_GET}")
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise CorruptFile(
                f"{path}: not a whole safetensors file ({error}); {HOW_TO_GET}"
            ) from error
        network = cls()
        _check_weights(path, weights, network.state_dict())
        network.load_state_dict(weights)
        return network

    @classmethod
    def from_hub(cls) -> Lpips:
        """The network with the published weights, fetched by torch.hub into its folder, once.

        528 MB, which stay there as torchvision's would, and a converted file of 59 MB next to them.
        What comes is no more than bytes until its sha256 is right.

        Raises:
            UserError: a file there is another than the published one.
            CorruptFile: what the network sent is.
            Unreachable: the network does not answer.
        """
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        converted = folder / f"lpips-vgg-{VGG16_SHA256[:8]}-{HEADS_SHA256[:8]}.safetensors"
        if not converted.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            vgg16, heads = folder / "vgg16-397923af.pth", folder / "lpips-v0.1-vgg.pth"
            _fetch(VGG16_URL, vgg16, VGG16_SHA256)
            _fetch(HEADS_URL, heads, HEADS_SHA256)
            convert_published(vgg16, heads, converted)
        return cls.from_file(converted)

    def forward(self, frames: Tensor, reference: Tensor) -> Tensor:
        """Raises ValueError where the two differ in shape or a side is below 16 pixels."""
        if frames.shape != reference.shape or frames.dim() != 4 or frames.shape[1] != 3:
            raise ValueError(
                f"frames and reference: found shapes {tuple(frames.shape)} and "
                f"{tuple(reference.shape)}, expected (N, 3, H, W) twice"
            )
        if min(frames.shape[-2:]) < MIN_SIDE:
            raise ValueError(
                f"frames: found {frames.shape[2]}x{frames.shape[3]} pixels, LPIPS needs at "
                f"least {MIN_SIDE} each way"
            )
        depths = zip(self._depths(frames), self._depths(reference), self.heads, strict=True)
        per_depth = [
            ((x - y).square() * head.float().view(-1, 1, 1)).sum(dim=1).mean(dim=(-2, -1))
            for x, y, head in depths
        ]
        return torch.stack(per_depth).sum(dim=0)

    def _depths(self, frames: Tensor) -> list[Tensor]:
        """Unit-length features, float32, finest first."""
        x = (frames * 2 - 1 - self.mean) / self.spread
        x = x.to(self.heads[0].dtype)
        depths = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                depths.append(_unit_length(x))
            x = layer(x)
        return [*depths, _unit_length(x)]


def lpips(frames: Tensor, reference: Tensor, network: Lpips) -> Tensor:
    """Mean LPIPS of each clip over its frames, a frame at a time.

    (T, 3, H, W) -> (); (B, T, 3, H, W) -> (B,). From 0, for identical frames; lower is better.

    Raises:
        ValueError: wrong shape, values outside [0, 1], NaN, a side below 16 pixels.
    """
    check_pair(frames, reference)
    pairs = zip(frames.flatten(0, -4), reference.flatten(0, -4), strict=True)
    with torch.no_grad():
        distances = torch.stack([network(x[None], y[None])[0] for x, y in pairs])
    return distances.reshape(frames.shape[:-3]).mean(dim=-1)


def convert_published(vgg16: Path, heads: Path, out: Path) -> None:
    """The two published files, checked by their hashes, as one file for `Lpips.from_file`.

    Raises:
        UserError: one of them is missing, or is another file than the published one.
    """
    weights: dict[str, Tensor] = {}
    wanted = Lpips().state_dict()
    for path, sha256 in ((Path(vgg16), VGG16_SHA256), (Path(heads), HEADS_SHA256)):
        check_published(path, sha256, HOW_TO_GET)
        weights |= torch.load(path, map_location="cpu", weights_only=True)
    for depth in range(len(CHANNELS)):
        weights[f"heads.{depth}"] = weights[f"lin{depth}.model.1.weight"].flatten()
    with atomic_file(Path(out)) as temporary:
        save_file({name: weights[name].contiguous() for name in wanted}, temporary)


def _fetch(url: str, path: Path, sha256: str) -> None:
    if path.is_file():
        return
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except RuntimeError as error:  # torch.hub's, for another hash; it leaves no file
        raise CorruptFile(f"{url} is not the published file: {error}; {HOW_TO_GET}") from error
    except (OSError, HTTPException) as error:
        raise Unreachable(f"{url} does not answer ({error}); {HOW_TO_GET}") from error


def _vgg16_features() -> nn.Sequential:
    """VGG16 up to its last rectified convolution; layers numbered as torchvision's are."""
    layers: list[nn.Module] = []
    before = 3
    for channels, count in zip(CHANNELS, CONVOLUTIONS, strict=True):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
            before = channels
    return nn.Sequential(*layers)


def _unit_length(x: Tensor) -> Tensor:
    x = x.float()
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / (length + EPSILON)


def _check_weights(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    wrong = sorted(
        name
        for name in found.keys() | wanted.keys()
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape
    )
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} weights are missing, unknown or of another shape "
            f"({', '.join(wrong[:5])}, ...); {HOW_TO_GET}"
        )
