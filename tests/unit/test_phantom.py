"""The phantoms: determined by a seed alone, drawable in any order, with findings where masks and boxes say."""

import numpy as np
import pytest
from PIL import Image

from jointdiff.data.source import DataError, load
from jointdiff.data.sources import phantom


@pytest.fixture(scope="module")
def studies():
    return [load() for load in phantom.read(size=32, patients=100, images_per_patient=3, seed=1)]


def same(one, other):
    assert (one.sample_id, one.group, list(one.labels)) == (other.sample_id, other.group, list(other.labels))
    assert np.array_equal(one.image, other.image)
    for a, b in zip(one.regions, other.regions, strict=True):
        assert a.finding == b.finding and a.box == b.box and np.array_equal(a.mask, b.mask)


def test_any_study_can_be_drawn_alone(studies):
    for index in (0, 7, 299, 4):
        same(phantom.draw(1, *divmod(index, 3), size=32), studies[index])


def test_another_seed_draws_other_images(studies):
    assert not np.array_equal(phantom.draw(2, 0, 0, size=32).image, studies[0].image)


def test_the_number_of_patients_changes_no_image(studies):
    alone = list(map(load, phantom.read(size=32, patients=2, images_per_patient=3, seed=1)))
    assert len(alone) == 6
    for one, other in zip(alone, studies[:6], strict=True):
        same(one, other)


def test_count_agrees_with_read(studies):
    assert phantom.describe(patients=100, images_per_patient=3, seed=1).facts.samples == len(studies)


def test_findings_are_common_enough_and_nearly_independent(studies):
    labels = np.array([study.labels for study in studies])
    assert np.all((labels.mean(axis=0) > 0.18) & (labels.mean(axis=0) < 0.42))
    correlation = np.corrcoef(labels.T)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlation) < 0.3)


def test_every_finding_has_its_mask_and_box(studies):
    for study in studies:
        assert [r.finding for r in study.regions] == [
            name for name, there in zip(phantom.FINDINGS, study.labels, strict=True) if there
        ]
        for region in study.regions:
            x0, y0, x1, y1 = (int(side) for side in region.box)
            assert region.mask[y0:y1, x0:x1].sum() == region.mask.sum() > 0


def test_findings_differ_in_nature(studies):
    """A nodule is small, an enlarged heart large, an effusion low in the chest."""
    areas = {
        name: [r.mask.mean() for study in studies for r in study.regions if r.finding == name]
        for name in phantom.FINDINGS
    }
    assert np.median(areas["nodule"]) < 0.03 < 0.10 < np.median(areas["cardiomegaly"])
    heights = [np.nonzero(r.mask)[0].mean() for study in studies for r in study.regions if r.finding == "effusion"]
    assert np.min(heights) > 15


def test_mean_brightness_tells_no_finding(studies):
    brightness = np.array([study.image.mean() for study in studies])
    labels = np.array([study.labels for study in studies])
    for k in range(3):
        present, absent = brightness[labels[:, k] == 1], brightness[labels[:, k] == 0]
        auroc = (present[:, None] > absent[None, :]).mean()
        assert abs(auroc - 0.5) < 0.25


@pytest.mark.parametrize("size", [48, 64, 128])
def test_every_size_shows_the_same_anatomy(size, studies):
    """Averaged down to 32 pixels, a larger drawing is the 32-pixel one up to the grain of the film."""
    for index in range(4):
        large = phantom.draw(1, *divmod(index, 3), size=size)
        assert list(large.labels) == list(studies[index].labels)
        small = np.asarray(Image.fromarray(large.image).resize((32, 32), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(small.ravel(), studies[index].image.ravel())[0, 1] > 0.97


def test_phantoms_too_small_for_a_nodule_are_refused():
    with pytest.raises(DataError, match=r"size 12: .* draw them at 16 or more"):
        next(phantom.read(size=12))
    for study in phantom.read(size=16, patients=40):
        assert all(region.mask.any() for region in load(study).regions)
