"""rFVD: the distance against scipy's matrix root, and I3D's calling convention on a stand-in."""

import hashlib
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from turbo_vaed.errors import UserError
from turbo_vaed.metrics.rfvd import frechet_distance, load_i3d, rfvd

SEEDS = st.integers(0, 2**32 - 1)


def features_of(seed, n, d, shift=0.0):
    dice = np.random.default_rng(seed)
    return torch.tensor(shift + dice.normal(size=(n, d)) @ dice.normal(size=(d, d)))


def parts(x, y):
    x, y = x.numpy(), y.numpy()
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return means, np.cov(x, rowvar=False), np.cov(y, rowvar=False)


def textbook(x, y):
    means, sx, sy = parts(x, y)
    return means + np.trace(sx + sy - 2 * scipy.linalg.sqrtm(sx @ sy).real)


def of_eigenvalues(x, y):
    """The root's trace as the sum of roots of the product's eigenvalues, of any rank."""
    means, sx, sy = parts(x, y)
    values = scipy.linalg.eigvals(sx @ sy).real.clip(min=0)
    return means + np.trace(sx + sy) - 2 * np.sqrt(values).sum()


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 8), (60, 90, 24)])
def test_distance_is_that_of_scipys_matrix_root(n, m, d):
    x, y = features_of(0, n, d), features_of(1, m, d, shift=0.5)
    assert frechet_distance(x, y) == pytest.approx(textbook(x, y), rel=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(6, 9, 40), (2, 3, 400), (5, 100, 20)])
def test_distance_where_covariances_are_of_deficient_rank(n, m, d):
    x, y = features_of(0, n, d), features_of(1, m, d, shift=0.5)
    assert frechet_distance(x, y) == pytest.approx(of_eigenvalues(x, y), rel=1e-4)


@given(seed=SEEDS, n=st.integers(2, 12), shift=st.floats(-3, 3))
def test_a_shift_costs_its_square_whatever_the_rank(seed, n, shift):
    x = features_of(seed, n, 5)
    assert frechet_distance(x + shift, x) == pytest.approx(5 * shift**2, abs=1e-6)


@given(seed=SEEDS, n=st.integers(2, 12), scale=st.floats(0.1, 3))
def test_a_spread_costs_the_square_of_its_growth(seed, n, scale):
    x = features_of(seed, n, 5)
    centre = x.mean(dim=0)
    spread = float((x - centre).square().sum() / (n - 1))
    found = frechet_distance(centre + scale * (x - centre), x)
    assert found == pytest.approx(spread * (1 - scale) ** 2, rel=1e-6, abs=1e-6)


@given(seed=SEEDS, n=st.integers(2, 9), m=st.integers(2, 9))
def test_distance_is_symmetric_and_never_negative(seed, n, m):
    x, y = features_of(seed, n, 5), features_of(seed + 1, m, 5)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert frechet_distance(x, y) >= 0
    assert 0 <= frechet_distance(x, x) < 1e-9


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 4), "two or more"),
        (torch.zeros(4), "two or more"),
        (torch.full((3, 4), math.nan), "not finite"),
        (torch.full((3, 4), math.inf), "not finite"),
        (torch.zeros(3, 5), "features"),
    ],
)
def test_features_that_have_no_distance_are_refused(x, message):
    good = torch.zeros(3, 4)
    for arguments in ((x, good), (good, x)):
        with pytest.raises(ValueError, match=message):
            frechet_distance(*arguments)


def colours(clips):
    """Mean and spread of each channel of each clip."""
    return torch.cat([clips.mean(dim=(1, 3, 4)), clips.std(dim=(1, 3, 4))], dim=1)


def test_rfvd_is_the_distance_of_all_clips_however_they_are_batched(make_pair):
    x, y = make_pair(5, 2, 3, 16, 16)
    whole = rfvd([(x, y)], colours)
    assert whole == pytest.approx(textbook(colours(x).double(), colours(y).double()), rel=1e-3)
    assert whole > 1e-4
    batches = ((x[a:b], y[a:b]) for a, b in ((0, 2), (2, 3), (3, 5)))
    assert rfvd(batches, colours) == pytest.approx(whole, rel=1e-6)
    assert rfvd([(y, y)], colours) == pytest.approx(0, abs=1e-9)


def test_a_worse_reconstruction_is_further(make_pair):
    values = [rfvd([make_pair(5, 2, 3, 16, 16, noise=n)], colours) for n in (0.02, 0.1, 0.3)]
    assert values == sorted(values)


def test_bad_frames_are_refused(assert_refused):
    assert_refused(lambda frames, reference: rfvd([(frames, reference)], colours))


@pytest.mark.parametrize(
    ("shape", "features", "message"),
    [
        ((2, 3, 16, 16), colours, "expected clips"),
        ((1, 2, 3, 16, 16), colours, "two or more"),
        ((2, 2, 3, 16, 16), lambda clips: clips.mean(dim=(1, 2, 3, 4)), "\\(clips, features\\)"),
        ((2, 2, 3, 16, 16), lambda clips: colours(clips)[:1], "for 2 clips"),
        ((2, 2, 3, 16, 16), lambda clips: colours(clips) / 0, "not finite"),
    ],
)
def test_clips_without_an_rfvd_are_refused(shape, features, message):
    with pytest.raises(ValueError, match=message):
        rfvd([(torch.zeros(shape), torch.zeros(shape))], features)
    with pytest.raises(ValueError, match="no clips"):
        rfvd([], features)


class StandIn(torch.nn.Module):
    """Called as the published I3D is; its features hold the arguments of the call."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        batch, channels, frames, height, width = video.shape
        arguments = [float(v) for v in (rescale, resize, return_features)]
        arguments += [float(channels), float(frames), float(height), float(width)]
        facts = torch.tensor(arguments).expand(batch, 7)
        corners = video[:, :, [0, -1]].mean(dim=(3, 4)).flatten(1)
        return torch.cat([facts, corners], dim=1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_i3d_is_called_as_it_was_trained(stand_in):
    path, digest = stand_in
    clips = torch.zeros(2, 10, 3, 20, 30)
    clips[:, 0, 0], clips[:, -1, 2] = 1, 0.25  # red at first, some blue at last
    found = load_i3d(path, sha256=digest)(clips)
    assert found.shape == (2, 13)
    assert found[1, :7].tolist() == [0, 0, 1, 3, 10, 224, 224]
    # Channel by channel, its first and last frame, in [-1, 1].
    assert found[1, 7:].tolist() == pytest.approx([1, -1, -1, -1, -1, -0.5], abs=1e-5)


def test_rfvd_of_a_given_file(stand_in, make_pair):
    path, digest = stand_in
    x, y = make_pair(3, 10, 3, 16, 16)
    features = load_i3d(path, sha256=digest)
    assert rfvd([(x, y)], features) > 0
    with pytest.raises(ValueError, match="found 9 frames"):
        rfvd([(x[:, :9], y[:, :9])], features)


def test_another_or_no_file_is_refused_unread(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("read before its hash"))
    with pytest.raises(UserError, match="expected bec6519f"):
        load_i3d(stand_in[0])
    with pytest.raises(UserError, match=r"dropbox.*i3d_torchscript\.pt"):
        load_i3d(tmp_path / "none.pt")
