"""LPIPS against a numpy formulation, and figures of the published package, on made-up weights."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import turbo_vaed.metrics.lpips as module
from turbo_vaed.errors import CorruptFile, UserError
from turbo_vaed.metrics.lpips import Lpips, convert_published, lpips

MAPS = {"shift": (-0.030, -0.088, -0.188), "scale": (0.458, 0.448, 0.450)}
# Layers of VGG16 by their published numbers; None halves the frame and starts a new depth.
LAYERS = (0, 2, None, 5, 7, None, 10, 12, 14, None, 17, 19, 21, None, 24, 26, 28)


@pytest.fixture(scope="module")
def weights():
    """Made up from a seed; features keep their size through the layers."""
    dice = np.random.default_rng(0)
    made = {}
    for name, like in Lpips().state_dict().items():
        if name.startswith("heads"):
            values = dice.uniform(0, 5, like.shape)
        elif name.endswith("bias"):
            values = dice.normal(0, 0.1, like.shape)
        else:
            values = dice.normal(0, (2 / like[0].numel()) ** 0.5, like.shape)
        made[name] = torch.tensor(values, dtype=torch.float32)
    return made


@pytest.fixture(scope="module")
def network(weights):
    made = Lpips()
    made.load_state_dict(weights)
    return made


def frames_of(seed, *shape, noise=0.1):
    dice = np.random.default_rng(seed)
    x = dice.uniform(0, 1, shape)
    y = (x + dice.normal(0, noise, shape)).clip(0, 1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def numpy_depths(frame, weights):
    """(3, H, W) in [0, 1] -> unit-length features of five depths, by windows and sums."""
    shift, scale = (np.array(MAPS[key])[:, None, None] for key in ("shift", "scale"))
    x = (2 * frame.astype(np.float64) - 1 - shift) / scale
    depths = []
    for number in (*LAYERS, None):
        if number is None:
            depths.append(x / np.maximum(np.sqrt(np.square(x).sum(axis=0)), 1e-10))
            c, h, w = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(c, h // 2, 2, w // 2, 2).max(axis=(2, 4))
            continue
        kernel = weights[f"features.{number}.weight"].double().numpy()
        bias = weights[f"features.{number}.bias"].double().numpy()
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.tensordot(kernel, windows, axes=((1, 2, 3), (0, 3, 4))) + bias[:, None, None]
        x = np.maximum(x, 0)
    return depths


def numpy_lpips(frame, reference, weights):
    pairs = zip(numpy_depths(frame, weights), numpy_depths(reference, weights), strict=True)
    return sum(
        np.einsum("chw,c->hw", np.square(x - y), weights[f"heads.{i}"].double().numpy()).mean()
        for i, (x, y) in enumerate(pairs)
    )


@pytest.mark.parametrize(("height", "width", "noise"), [(32, 24, 0.1), (35, 37, 0.02)])
def test_lpips_is_that_of_a_numpy_formulation(height, width, noise, network, weights):
    x, y = frames_of(1, 2, 3, height, width, noise=noise)
    found = network(x, y).tolist()
    expected = [numpy_lpips(a.numpy(), b.numpy(), weights) for a, b in zip(x, y, strict=True)]
    assert min(expected) > 0.01
    assert found == pytest.approx(expected, rel=1e-4)


def test_lpips_is_that_of_the_published_package(network):
    """Figures of lpips 0.1.4, `LPIPS(net="vgg")(x, y, normalize=True)`, with these weights."""
    published = [0.4785047471523285, 0.45175641775131226]
    assert network(*frames_of(32, 2, 3, 32, 48)).tolist() == pytest.approx(published, abs=1e-5)


def test_identical_frames_are_at_no_distance_and_more_noise_is_further(network):
    x, _ = frames_of(0, 2, 3, 32, 32)
    assert float(lpips(x, x, network)) == 0
    distances = [float(lpips(*frames_of(0, 2, 3, 32, 32, noise=n), network)) for n in (0.02, 0.2)]
    assert 0 < distances[0] < distances[1]


def test_clips_are_the_means_of_their_frames(network):
    x, y = frames_of(0, 2, 3, 3, 20, 24)
    found = lpips(x, y, network)
    assert found.shape == (2,)
    per_frame = network(x.flatten(0, 1), y.flatten(0, 1)).view(2, 3)
    assert found.tolist() == pytest.approx(per_frame.mean(dim=1).tolist(), rel=1e-4)
    assert float(lpips(x[1], y[1], network)) == pytest.approx(float(found[1]), rel=1e-4)


def test_lpips_as_a_loss_has_a_gradient_for_frames_and_none_for_its_weights(network):
    x, y = frames_of(0, 1, 3, 32, 32)
    x.requires_grad_(True)
    network.train()
    before = network(x, y)
    before.sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert float(x.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())
    after = network((x - 0.01 * x.grad / x.grad.abs().max()).detach(), y)
    assert float(after) < float(before.detach())


def test_weights_are_read_back_as_written(tmp_path, network, weights):
    save_file(weights, tmp_path / "lpips.safetensors")
    again = Lpips.from_file(tmp_path / "lpips.safetensors")
    x, y = frames_of(0, 1, 3, 16, 16)
    assert torch.equal(again(x, y), network(x, y))


def test_a_missing_weights_file_is_refused_with_the_command_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"convert_published.*vgg16-397923af\.pth"):
        Lpips.from_file(tmp_path / "none.safetensors")


def test_pickled_and_cut_weights_are_refused(tmp_path, weights):
    torch.save(weights, tmp_path / "pickled.safetensors")
    save_file(weights, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("pickled", "cut"):
        with pytest.raises(CorruptFile, match=name):
            Lpips.from_file(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features.28.bias": None}, "features.28.bias"),
        ({"lin0": torch.zeros(1)}, "lin0"),
        ({"heads.1": torch.zeros(64)}, "heads.1"),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, weights, change, named):
    changed = {k: v for k, v in {**weights, **change}.items() if v is not None}
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=f"1 weights.*{named}"):
        Lpips.from_file(tmp_path / "other.safetensors")


@pytest.fixture
def published(tmp_path, weights):
    """The two files as they are published, names and shapes included."""
    folder = tmp_path
    trunk = {name: value for name, value in weights.items() if name.startswith("features")}
    torch.save({**trunk, "classifier.6.bias": torch.zeros(1000)}, folder / "vgg16.pth")
    heads = {f"lin{i}.model.1.weight": weights[f"heads.{i}"].view(1, -1, 1, 1) for i in range(5)}
    torch.save(heads, folder / "vgg.pth")
    return folder / "vgg16.pth", folder / "vgg.pth"


@pytest.fixture
def pinned(published, monkeypatch):
    """As if those were the published ones."""
    for name, path in zip(("VGG16_SHA256", "HEADS_SHA256"), published, strict=True):
        monkeypatch.setattr(module, name, hashlib.sha256(path.read_bytes()).hexdigest())
    return published


def test_the_published_files_are_converted_into_one(tmp_path, network, pinned):
    convert_published(*pinned, tmp_path / "lpips.safetensors")
    x, y = frames_of(0, 1, 3, 16, 16)
    assert torch.equal(Lpips.from_file(tmp_path / "lpips.safetensors")(x, y), network(x, y))
    assert {path.name for path in tmp_path.iterdir()} == {
        "vgg16.pth", "vgg.pth", "lpips.safetensors",
    }  # fmt: skip


def test_a_full_disk_leaves_nothing_half_written(tmp_path, pinned, monkeypatch):
    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        convert_published(*pinned, tmp_path / "lpips.safetensors")
    assert set(tmp_path.iterdir()) == set(pinned)


def test_files_other_than_the_published_are_refused_unread(tmp_path, published, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("read before its hash"))
    with pytest.raises(UserError, match="expected 397923af"):
        convert_published(*published, tmp_path / "lpips.safetensors")
    with pytest.raises(UserError, match=r"none\.pth"):
        convert_published(tmp_path / "none.pth", published[1], tmp_path / "lpips.safetensors")
    assert not (tmp_path / "lpips.safetensors").exists()


def test_bad_frames_are_refused(assert_refused, network):
    assert_refused(lambda frames, reference: lpips(frames, reference, network))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 15, 64), "15x64"),
        (torch.zeros(2, 3, 3, 32, 32), "expected \\(N, 3, H, W\\)"),
        (torch.zeros(1, 1, 32, 32), "expected \\(N, 3, H, W\\)"),
    ],
)
def test_the_loss_refuses_videos_that_do_not_fit(frames, message, network):
    with pytest.raises(ValueError, match=message):
        network(frames, frames)
    with pytest.raises(ValueError, match="expected \\(N, 3, H, W\\) twice"):
        network(torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32))
