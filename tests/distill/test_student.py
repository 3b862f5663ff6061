"""The student in training: its memory layout, and the precision that a device is given."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from turbo_vaed.distill import student as module
from turbo_vaed.distill.student import Student, bf16_pays
from turbo_vaed.models import PRESETS

CPU = torch.device("cpu")


class ConvolutionInputs(TorchDispatchMode):
    """Whether what convolutions are given, frames and gradients, lies channels-last."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        convolution = torch.ops.aten.convolution_backward.default
        if function in (convolution, torch.ops.aten.convolution.default):
            given = args[:2] if function is convolution else args[:1]
            self.kept += [
                x.is_contiguous(memory_format=torch.channels_last)
                for x in given
                if x.shape[1] > 3  # not the video's gradient, which comes as the losses have it
            ]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_convolution_of_a_step_is_given_channels_last(precision) -> None:
    student = Student(PRESETS["tiny-ltx"], with_heads=False)
    with ConvolutionInputs() as seen:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            video, _ = student(torch.randn(2, 32, 3, 4, 4))
        video.float().abs().mean().backward()
    assert len(seen.kept) > 50
    assert all(seen.kept)


@pytest.mark.parametrize(("bf16", "fp32", "pays"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_bf16_is_taken_where_it_is_faster(monkeypatch, bf16, fp32, pays) -> None:
    seconds = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(module, "_matmul_seconds", seconds.__getitem__)
    assert bf16_pays.__wrapped__(CPU) is pays


def test_bf16_is_not_taken_where_it_would_be_emulated(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    monkeypatch.setattr(module, "_matmul_seconds", lambda dtype: pytest.fail("measured"))
    assert not bf16_pays.__wrapped__(CPU)
