from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.data.download import DownloadError, download
from jointdiff.evaluate import inception
from jointdiff.evaluate.distances import frechet_distance
from jointdiff.evaluate.inception import inception_features, inception_network
from jointdiff.files import sha256
from jointdiff.paths import INCEPTION, inception_weights


def test_frechet_distance_of_gaussians_in_closed_form():
    """Features whose sample moments are exact: |m|^2 + sum (sqrt a - sqrt b)^2 for diagonal covariances."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((500, 4))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    a = white * np.sqrt([1.0, 2.0, 3.0, 4.0])
    b = white * np.sqrt([4.0, 2.0, 1.0, 0.25]) + [1.0, 0.0, -2.0, 0.0]
    expected = 5.0 + (2 - 1) ** 2 + 0 + (np.sqrt(3) - 1) ** 2 + (2 - 0.5) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_equals_clean_fid():
    from cleanfid.fid import frechet_distance as reference

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 8)), rng.standard_normal((200, 8)) + 0.3
    moments = [m for x in (a, b) for m in (x.mean(0), np.cov(x, rowvar=False))]
    assert frechet_distance(a, b) == pytest.approx(reference(*moments), rel=1e-6)


def test_frechet_distance_stays_real_with_fewer_images_than_features():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((10, 64)), rng.standard_normal((12, 64))
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


class _Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)).repeat(1, 683)[:, :2048]


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_clean_fid_reads_local_weights_and_resizes(tmp_path, monkeypatch):
    """The real loading and resizing code on a network of our own that averages its input."""
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(_Network()).save(str(path))
    with pytest.raises(ValueError, match="a distance in other features is no FID"):
        inception_network(path, torch.device("cpu"))
    monkeypatch.setattr(inception, "SHA256", sha256(path))
    network = inception_network(path, torch.device("cpu"))
    grey = np.stack([np.full((28, 28, 1), value, np.uint8) for value in (0, 128, 255)])
    features = inception_features(network, grey, torch.device("cpu"))
    assert features.shape == (3, 2048)
    np.testing.assert_allclose(features[:, 0], [-1.0, 0.0, 127 / 128], atol=1e-6)


def test_missing_inception_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.inception: .*nothing\.pt must be an existing file"):
        inception_network(tmp_path / "nothing.pt", torch.device("cpu"))


def test_inception_weights_come_from_the_mirror_with_their_checksum(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror" / "inception"
    mirror.mkdir(parents=True)
    (mirror / inception.FILE).write_bytes(b"weights")
    nowhere = replace(inception.WEIGHTS.files[0], urls=())
    with pytest.raises(DownloadError, match="inception"):  # other weights than the published ones
        download(replace(inception.WEIGHTS, files=(nowhere,)), tmp_path / "out", mirror=str(tmp_path / "mirror"))
    assert not (tmp_path / "out" / inception.FILE).exists()
    own = replace(nowhere, sha256=sha256(mirror / inception.FILE))
    download(replace(inception.WEIGHTS, files=(own,)), tmp_path / "out", mirror=str(tmp_path / "mirror"))
    assert (tmp_path / "out" / inception.FILE).read_bytes() == b"weights"


def test_inception_weights_are_those_named_or_downloaded_or_the_mirrors(tmp_path):
    assert inception_weights(None, mirror=None) is None
    assert inception_weights(None, mirror=str(tmp_path)) is None
    assert inception_weights("mine.pt", mirror=str(tmp_path)) == "mine.pt"
    assert inception_weights("download", mirror=None) == INCEPTION and INCEPTION.endswith(inception.FILE)
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception" / inception.FILE).touch()
    assert inception_weights(None, mirror=str(tmp_path)) == str(tmp_path / "inception" / inception.FILE)
