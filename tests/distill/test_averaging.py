"""Two workers average their gradients: the same as one worker with the joint batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from turbo_vaed.distill.loop import _wrap
from turbo_vaed.models import DecoderConfig, TurboVaedDecoder

CONFIG = DecoderConfig(
    latent_channels=4,
    decoder_block_out_channels=(16, 8),
    decoder_layers_per_block=(1, 1, 1),
    spatio_temporal_scaling=(True, False),
    decoder_spatio_only=(False, False),
    decoder_is_dw_conv=(False, True, True),
    decoder_dw_kernel_size=3,
    patch_size=2,
)


def gradients(seed: int, part: slice) -> dict[str, torch.Tensor]:
    """Gradients of a decoder made from `seed` on a part of one fixed batch."""
    torch.manual_seed(seed)
    decoder = TurboVaedDecoder(CONFIG)
    model = _wrap(decoder)
    batch = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    model(batch[part]).abs().mean().backward()
    return {name: p.grad for name, p in decoder.named_parameters()}


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    # Rank 1 starts from other weights: those of rank 0 must be everybody's.
    torch.save(gradients(rank, slice(rank, rank + 1)), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradients_of_two_workers_are_those_of_the_joint_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    alone = gradients(0, slice(0, 2))
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        for name, gradient in alone.items():
            assert torch.allclose(shared[name], gradient, atol=1e-6), (rank, name)
