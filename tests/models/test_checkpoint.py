"""A decoder on disk: what is written, what is read, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turbo_vaed.models import TurboVaedDecoder, load_decoder, save_decoder


def test_save_and_load(tiny: TurboVaedDecoder, tmp_path: Path) -> None:
    save_decoder(tiny, tmp_path / "decoder")
    save_decoder(tiny, tmp_path / "decoder")  # over an older one
    assert sorted(p.name for p in (tmp_path / "decoder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = load_decoder(tmp_path / "decoder")
    assert loaded.config == tiny.config
    latents = torch.randn(1, 32, 2, 3, 3)
    assert torch.equal(loaded(latents), tiny(latents))


def test_a_failed_save_leaves_the_old_files(
    tiny: TurboVaedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_decoder(tiny, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("turbo_vaed.models.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_decoder(tiny, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_and_damaged_files_are_named(tiny: TurboVaedDecoder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_decoder(tmp_path)
    save_decoder(tiny, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a safetensors file"):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors: .*whole"):
            load_decoder(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_decoder(tmp_path)


def test_the_file_name_of_diffusers_is_accepted_and_pickles_are_not(
    tiny: TurboVaedDecoder, tmp_path: Path
) -> None:
    save_decoder(tiny, tmp_path)
    renamed = tmp_path / "diffusion_pytorch_model.safetensors"
    (tmp_path / "model.safetensors").rename(renamed)
    assert load_decoder(tmp_path).config == tiny.config
    renamed.unlink()
    torch.save(tiny.published_state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickled"):
        load_decoder(tmp_path)


def test_weights_with_another_config_are_refused(tiny: TurboVaedDecoder, tmp_path: Path) -> None:
    save_decoder(tiny, tmp_path)
    other = replace(tiny.config, is_video_dc_ae=True)  # of the same weight shapes
    (tmp_path / "config.json").write_text(json.dumps(other.to_published()))
    with pytest.raises(ValueError, match="another config"):
        load_decoder(tmp_path)


def test_wrong_weights_are_listed_and_not_loaded(tiny: TurboVaedDecoder) -> None:
    weights = {name: tensor + 1 for name, tensor in tiny.published_state_dict().items()}
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    del weights["decoder.conv_in.conv.bias"]
    weights["decoder.wings.weight"] = torch.zeros(1)
    weights["decoder.conv_out.conv.bias"] = torch.zeros(4)
    with pytest.raises(ValueError) as caught:
        tiny.load_published(weights)
    for part in (
        "missing: decoder.conv_in.conv.bias",
        "unexpected: decoder.wings.weight",
        "decoder.conv_out.conv.bias: found shape (4,), allowed: (3,)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())
