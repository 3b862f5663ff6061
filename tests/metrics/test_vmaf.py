"""VMAF of libvmaf against the PyTorch re-implementation vmaf-torch (Aistov and Koroteev 2023)."""

import sys

import numpy as np
import pytest
import torch
from vmaf_torch import VMAF

from turbo_vaed.errors import Fault, UserError
from turbo_vaed.metrics.vmaf import vmaf


def clips_of(*shape, noise, seed=0):
    """A moving, textured picture, and the same under noise: (T, 3, H, W)."""
    dice = np.random.default_rng(seed)
    t, h, w = shape
    y, x = np.mgrid[:h, :w]
    picture = np.stack(
        [0.5 + 0.3 * np.sin((x + 3 * i) / 7) * np.cos((y + i) / 5) for i in range(t)]
    )
    colour = np.array([0.9, 1.0, 0.7])[:, None, None]
    picture = picture[:, None] * colour + dice.normal(0, 0.05, (3, h, w))
    worse = picture + dice.normal(0, noise, picture.shape)
    return tuple(torch.tensor(a.clip(0, 1), dtype=torch.float32) for a in (worse, picture))


def of_vmaf_torch(clip, reference):
    """Its mean over frames of 8-bit BT.709 luma, made here in numpy."""

    def luma(frames):
        red, green, blue = np.moveaxis(frames.double().numpy(), 1, 0)
        y = np.rint(16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue))
        return torch.tensor(y, dtype=torch.float32)[:, None]

    with torch.no_grad():
        return float(VMAF(clip_score=True)(luma(reference), luma(clip)).mean())


@pytest.mark.parametrize(
    ("frames", "height", "width", "noise"),
    [(4, 96, 128, 0.04), (3, 113, 97, 0.1), (1, 128, 128, 0.08), (3, 144, 176, 0.2)],
)
def test_vmaf_is_that_of_vmaf_torch(frames, height, width, noise):
    """To 1e-3 of its range of 100; vmaf-torch computes in floats what libvmaf does in integers."""
    x, y = clips_of(frames, height, width, noise=noise)
    found = float(vmaf(x, y))
    assert 20 < found < 99
    assert found / 100 == pytest.approx(of_vmaf_torch(x, y) / 100, abs=1e-3)


def test_identical_clips_are_near_the_top_and_noise_costs():
    values = [float(vmaf(*clips_of(3, 96, 96, noise=n))) for n in (0, 0.03, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)
    assert 97 < values[0] <= 100
    assert values[-1] < 50


def test_a_batch_has_the_values_of_its_clips():
    pairs = [clips_of(2, 64, 70, noise=noise) for noise in (0.02, 0.2)]
    x, y = (torch.stack(side) for side in zip(*pairs, strict=True))
    expected = [float(vmaf(*pair)) for pair in pairs]
    assert expected[0] > expected[1] + 10
    assert vmaf(x, y).tolist() == pytest.approx(expected, abs=1e-9)


def test_vmaf_is_not_normalised_to_the_frames_range():
    x, y = clips_of(2, 64, 64, noise=0.1)
    assert abs(float(vmaf(x * 0.25, y * 0.25)) - float(vmaf(x, y))) > 1


def test_bad_frames_are_refused(assert_refused):
    assert_refused(vmaf)


def test_frames_too_small_for_libvmaf_are_refused():
    x = torch.zeros(2, 3, 63, 128)
    with pytest.raises(ValueError, match="63x128"):
        vmaf(x, x)


def test_without_the_vmaf_extra_the_error_has_the_command_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    x = torch.zeros(2, 3, 64, 64)
    with pytest.raises(UserError, match=r"turbo-vaed\[vmaf\]"):
        vmaf(x, x)


def test_an_ffmpeg_without_libvmaf_is_a_fault(monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'No such filter: libvmaf' >&2\nexit 8\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    x = torch.zeros(2, 3, 64, 64)
    with pytest.raises(Fault, match=r"exit code 8.*libvmaf"):
        vmaf(x, x)
