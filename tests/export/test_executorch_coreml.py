"""ExecuTorch's programs for Core ML: one call, the same bytes, and what is inside computes."""

import pytest
import torch

from tests.export.small import small_decoder
from turbo_vaed.export import ExportJob, Target, executorch, export_package
from turbo_vaed.export.executorch_coreml import unpacked
from turbo_vaed.export.graph import ExportError
from turbo_vaed.export.mil import open_mlpackage
from turbo_vaed.gate.parity import parity_psnr, verify

pytestmark = pytest.mark.slow

SHAPE = (1, 8, 2, 4, 6)
TARGET = Target.parse("executorch-coreml/fp16")


@pytest.fixture(scope="module")
def decoder():
    return small_decoder()


def job(decoder, folder, **more):
    return ExportJob(decoder=decoder, latent_shape=SHAPE, precision="fp16", folder=folder, **more)


@pytest.fixture(scope="module")
def package(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    return export_package(TARGET, folder / "package", job(decoder, folder))


def test_the_program_inside_computes_what_the_decoder_does(package, decoder):
    latents = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    found = verify(package, decoder, latents.numpy(), limit_db=50)
    assert found.how == "mil-interpreter" and found.clips == 3
    assert found.parity_psnr_db < 100, "it is of float16"


def test_latents_are_scaled_inside(decoder, tmp_path):
    mean, std = [0.5] * SHAPE[1], [2.0] * SHAPE[1]
    made = export_package(
        TARGET, tmp_path / "p", job(decoder, tmp_path, latent_mean=mean, latent_std=std)
    )
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with unpacked(made.program_path) as mlpackage:
        video = torch.from_numpy(open_mlpackage(mlpackage)(latents.numpy()))
    with torch.no_grad():
        assert parity_psnr(video, decoder(latents * 2 + 0.5)) > 50


def test_a_program_has_the_same_bytes_every_time(package, decoder, tmp_path):
    again = export_package(TARGET, tmp_path / "p", job(decoder, tmp_path))
    assert again.sha256 == package.sha256


def test_a_program_that_is_not_one_call_of_core_ml_is_refused(tmp_path):
    """XNNPACK's, say: it has the same name, and would run on the CPU."""

    class Doubled(torch.nn.Module):
        def forward(self, x):
            return x + x

    program = tmp_path / "decoder.pte"
    exported = torch.export.export(Doubled(), (torch.zeros(1, 4, 2, 2),))
    program.write_bytes(executorch._lower(exported))
    with pytest.raises(ExportError, match=r"found delegates .*Xnnpack"):  # noqa: SIM117
        with unpacked(program):
            pass
