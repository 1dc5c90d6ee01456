"""Localisation by hand-made maps, closed forms and scikit-learn."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn import metrics as reference

from jointdiff.evaluate.cost import score_cost
from jointdiff.evaluate.distances import frechet_distance
from jointdiff.evaluate.scores import parse_protocol, split_protocol
from jointdiff.explain.localisation import (
    MAP_METRICS,
    NO_REGIONS,
    box_iobb,
    box_iou,
    change_inside,
    change_outside,
    iou,
    pixel_ap,
    pixel_auroc,
    pointing,
    score_explanations,
)
from jointdiff.explain.saliency import centre_prior, random_map
from tests.properties import examples

RUN = {
    "spec": {"dataset": "phantom", "labels": "50", "variant": "joint", "seed": 0},
    "code_version": "c0de",
    "config_digest": "c0nf",
    "run_id": "r0",
}


def square(size=8, low=2, high=4):
    region = np.zeros((size, size), bool)
    region[low:high, low:high] = True
    return region


def write_explanations(path, **changes):
    """Write four images, two per finding, whose counterfactual map is the region itself times 0.2."""
    region = np.stack([square(), square(low=3, high=6), square(), square(low=1, high=3)])
    arrays = {
        "sample": np.arange(4),
        "finding": np.array([0, 0, 1, 1]),
        "image": np.zeros((4, 8, 8, 1), np.uint8),
        "region": region,
        "map:counterfactual": (0.2 * region + 0.05).astype(np.float32),
        "map:random_map": np.random.default_rng(0).random((4, 8, 8)).astype(np.float32),
        "before": np.array([[0.9, 0.2], [0.8, 0.2], [0.1, 0.7], [0.1, 0.4]], np.float32),
        "after": np.array([[0.1, 0.3], [0.6, 0.2], [0.1, 0.2], [0.1, 0.1]], np.float32),
        "judge_before": np.full((4, 2), 0.9, np.float32),
        "judge_after": np.full((4, 2), 0.1, np.float32),
        "judge_control": np.array([[0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.2, 0.2]], np.float32),
        "protocol": json.dumps({"explainers": ["counterfactual"], "steps": 12, "guidance": 3.0}),
        "cost": json.dumps({"ms_per_counterfactual": 70.0, "calls_per_counterfactual": 24}),
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def by_name(rows):
    return {(r["metric"], r["finding"], parse_protocol(r["protocol"])["map"]): r for r in rows}


def test_change_is_in_percent_of_the_pixel_range():
    region = square()
    change = np.where(region, 0.3, 0.1)
    assert change_inside(change, region) == pytest.approx(30)
    assert change_outside(change, region) == pytest.approx(10)
    assert math.isnan(change_outside(change, np.ones((8, 8), bool)))


def test_pointing_looks_at_the_hottest_pixel_and_shares_ties():
    region, heat = square(), np.zeros((8, 8))
    heat[2, 3] = 1
    assert pointing(heat, region) == 1
    heat[7, 7] = 1
    assert pointing(heat, region) == 0.5
    heat[7, 7] = 2
    assert pointing(heat, region) == 0
    assert pointing(np.ones((8, 8)), region) == pytest.approx(region.mean())


@examples(100)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_pixel_scores_equal_scikit_learn(seed, levels):
    rng = np.random.default_rng(seed)
    heat, region = rng.integers(0, levels, (6, 6)) / levels, rng.random((6, 6)) < 0.3
    region[0, :2] = True, False
    assert pixel_auroc(heat, region) == pytest.approx(reference.roc_auc_score(region.ravel(), heat.ravel()), abs=1e-9)
    expected = reference.average_precision_score(region.ravel(), heat.ravel())
    assert pixel_ap(heat, region) == pytest.approx(expected, abs=1e-9)


def test_iou_keeps_as_many_pixels_as_the_region_has():
    region = square()  # 4 pixels
    assert iou(region.astype(float), region) == 1
    heat = np.zeros((8, 8))
    heat[2, 2], heat[2, 3], heat[0, 0], heat[0, 1] = 4, 3, 2, 1
    assert iou(heat, region) == pytest.approx(2 / 6)
    assert iou(1.0 - region, region) == 0
    shared = 4 * region.mean()  # of a constant map any 4 pixels are as good: the expected overlap counts
    assert iou(np.ones((8, 8)), region) == pytest.approx(shared / (8 - shared))


@examples(50)
@given(st.integers(0, 10_000))
def test_iou_without_ties_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    heat, region = rng.random((7, 7)), rng.random((7, 7)) < 0.3
    region[0, 0] = True
    kept = heat >= np.sort(heat.ravel())[-region.sum()]
    assert iou(heat, region) == pytest.approx((kept & region).sum() / (kept | region).sum())


def test_the_box_around_the_hottest_pixels():
    """Of 100 pixels 5 are kept: their box is rows 1 to 3 and columns 2 to 5, that of the region rows 2 to 6, 4 to 7."""
    heat = np.random.default_rng(0).random((10, 10))
    for place, (y, x) in enumerate([(1, 3), (3, 4), (2, 2), (2, 5), (1, 5)]):
        heat[y, x] = 2 + place
    heat[9, 9] = 1.5  # the sixth
    region = np.zeros((10, 10), bool)
    region[2, 4:8] = region[6, 5] = region[4, 4] = True  # no rectangle: its box counts
    shared, found, wanted = 2 * 2, 3 * 4, 5 * 4
    assert box_iou(heat, region) == pytest.approx(shared / (found + wanted - shared))
    assert box_iobb(heat, region) == pytest.approx(shared / found)
    for name, share in (("box_iou", 4 / 28), ("box_iobb", 1 / 3)):
        above = [MAP_METRICS[f"{name}_above_{least}"](heat, region) for least in (0.1, 0.25, 0.5)]
        assert above == [share > least for least in (0.1, 0.25, 0.5)]
    assert box_iou(heat, heat == heat.max()) == pytest.approx(1 / 12)
    far = np.zeros((10, 10), bool)
    far[8:, 8:] = True
    assert box_iou(heat, far) == box_iobb(heat, far) == 0


def test_a_map_of_one_spot_has_a_box_and_a_constant_one_the_whole_image():
    region, heat = square(size=20), np.zeros((20, 20))
    heat[2:4, 2:4] = 0.3  # 4 of the 20 pixels that would be kept: what is not hot is not the rest
    assert box_iou(heat, region) == box_iobb(heat, region) == 1
    assert box_iou(np.ones((20, 20)), region) == box_iobb(np.ones((20, 20)), region) == pytest.approx(4 / 400)


@examples(50)
@given(st.integers(0, 10_000))
def test_boxes_equal_sets_of_pixels(seed):
    """The same by counting pixels of boxes painted into images, the hottest found by sorting."""
    rng = np.random.default_rng(seed)
    heat, region = rng.random((15, 12)), rng.random((15, 12)) < 0.03
    region[rng.integers(15), rng.integers(12)] = True
    painted = []
    for mask in (heat >= np.sort(heat.ravel())[-9], region):  # 5 % of 180
        y, x = np.nonzero(mask)
        painted.append(np.zeros((15, 12), bool))
        painted[-1][y.min() : y.max() + 1, x.min() : x.max() + 1] = True
    found, wanted = painted
    assert box_iou(heat, region) == pytest.approx((found & wanted).sum() / (found | wanted).sum())
    assert box_iobb(heat, region) == pytest.approx((found & wanted).sum() / found.sum())


def test_random_maps_stand_at_their_floors(tmp_path):
    """Pointing at the share of the region and a pixel AUROC of .5, within 99.9 % of what chance allows."""
    count, rng = 900, np.random.default_rng(1)
    region = np.stack([square(size=16, low=3, high=high) for high in rng.integers(6, 12, count)])
    path = tmp_path / "e.npz"
    prior = np.broadcast_to(centre_prior(1, 16), region.shape)
    np.savez(
        path,
        finding=np.zeros(count, int),
        region=region,
        **{"map:random_map": random_map(np.arange(count), 16), "map:centre_prior": prior},
    )
    rows = by_name(score_explanations(path, RUN, ["nodule"], bootstrap=10))
    floor = region.mean()
    assert rows["pointing_floor", "nodule", "uniform"]["value"] == pytest.approx(floor)
    hits = rows["pointing", "nodule", "random_map"]["value"] * count
    low, high = binom.interval(0.999, count, floor)
    assert low <= hits <= high
    # Of m pixels inside and n outside, an AUROC of chance has variance (m + n + 1) / 12 m n (Mann & Whitney 1947).
    inside = region.sum(axis=(1, 2))
    deviation = np.sqrt(((256 + 1) / (12 * inside * (256 - inside))).sum()) / count
    assert rows["pixel_auroc", "nodule", "random_map"]["value"] == pytest.approx(0.5, abs=3.3 * deviation)
    # The prior points at the four pixels in the middle, wherever the region is.
    assert rows["pointing", "nodule", "centre_prior"]["value"] == pytest.approx(region[:, 7:9, 7:9].mean())


def test_the_floor_is_what_a_random_map_points_to():
    rng = np.random.default_rng(0)
    regions = [square(size=16, low=2, high=high) for high in rng.integers(4, 12, 2000)]
    hits = np.mean([pointing(rng.random((16, 16)), region) for region in regions])
    assert hits == pytest.approx(np.mean([region.mean() for region in regions]), abs=0.03)


@examples(40)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-1, 1))
def test_ranking_scores_do_not_see_the_scale_of_a_map(seed, scale, shift):
    rng = np.random.default_rng(seed)
    heat, region = rng.integers(0, 100, (6, 6)).astype(float), rng.random((6, 6)) < 0.4
    region[0, :2] = True, False
    for metric in MAP_METRICS.values():
        assert metric(heat * scale + shift, region) == pytest.approx(metric(heat, region))


def test_rows_of_a_cell(tmp_path):
    rows = by_name(
        score_explanations(write_explanations(tmp_path / "e.npz"), RUN, ["nodule", "effusion"], bootstrap=50)
    )
    change = "counterfactual"
    assert rows["change_inside", "nodule", change]["value"] == pytest.approx(25)
    assert rows["change_outside", "macro", change]["value"] == pytest.approx(5)
    assert rows["change_ratio", "effusion", change]["value"] == pytest.approx(5)
    assert rows["pointing", "macro", change]["value"] == 1 and rows["pixel_auroc", "macro", change]["value"] == 1
    assert rows["iou", "nodule", change]["ci_low"] == pytest.approx(1)
    assert rows["flip_rate", "nodule", change]["value"] == 0.5 and rows["flip_rate", "nodule", change]["n"] == 2
    assert rows["flip_rate", "effusion", change]["value"] == 1 and rows["flip_rate", "effusion", change]["n"] == 1
    assert rows["judge_flip_rate", "macro", change]["value"] == 1
    assert [rows["control_flip_rate", name, change]["value"] for name in ("nodule", "effusion")] == [0, 0.5]
    assert rows["control_probability", "effusion", change]["value"] == pytest.approx(0.55)
    assert rows["probability_before", "nodule", change]["value"] == pytest.approx(0.85)
    assert rows["probability_after", "nodule", change]["value"] == pytest.approx(0.35)
    assert rows["side_effect", "nodule", change]["value"] == pytest.approx(0.05)
    assert rows["pointing_floor", "nodule", "uniform"]["value"] == pytest.approx((4 + 9) / 2 / 64)
    assert ("change_inside", "macro", "random_map") not in rows  # in no unit
    facts = parse_protocol(rows["pointing", "macro", change]["protocol"])
    assert (facts["steps"], facts["guidance"], facts["groups"]) == ("12", "3", "4") and "explainers" not in facts


def test_images_of_one_patient_are_drawn_together(tmp_path):
    alone = write_explanations(tmp_path / "a.npz")
    grouped = write_explanations(tmp_path / "g.npz", group=np.array(["p", "p", "q", "q"]))
    for path, groups in ((alone, "4"), (grouped, "2")):
        rows = by_name(score_explanations(path, RUN, ["a", "b"], bootstrap=20))
        assert parse_protocol(rows["iou", "macro", "random_map"]["protocol"])["groups"] == groups


@pytest.mark.parametrize("region", [np.zeros((4, 8, 8), bool), None])
def test_a_data_set_without_regions_is_a_gap_with_its_reason(tmp_path, region):
    path = write_explanations(tmp_path / "e.npz", region=region)
    rows = by_name(score_explanations(path, RUN, ["nodule", "effusion"], bootstrap=20))
    for metric in ("pointing", "pixel_auroc", "iou", "change_ratio"):
        gap = rows[metric, "macro", "random_map"]
        assert math.isnan(gap["value"]) and parse_protocol(gap["protocol"])["reason"] == NO_REGIONS
    assert rows["flip_rate", "macro", "counterfactual"]["value"] == 0.75  # what needs no region is still scored


def test_the_size_of_an_edit(tmp_path):
    change = np.zeros((4, 8, 8), np.float32)
    change[:, :2] = 0.04
    change[:2, 0] = 0.4
    path = write_explanations(
        tmp_path / "e.npz",
        **{"map:counterfactual_control": change, "spread": np.full((4, 8, 8), 0.02, np.float32)},
    )
    rows = by_name(score_explanations(path, RUN, ["nodule", "effusion"], bootstrap=20))
    value = {key[:2]: row["value"] for key, row in rows.items() if key[2] == "counterfactual"}
    assert value["edit_size", "nodule"] == pytest.approx((0.4 + 0.04) / 8 * 100)
    assert value["edit_size", "effusion"] == pytest.approx(1)
    assert (value["sparsity", "nodule"], value["sparsity", "effusion"]) == (1 / 8, 0)  # .04 is no change
    assert value["sparsity", "macro"] == 1 / 16 and value["spread", "macro"] == pytest.approx(2)
    assert value["proximity", "nodule"] == pytest.approx(5 + 20 * (4 + 9) / 2 / 64)
    assert ("proximity", "macro", "random_map") not in rows
    facts = parse_protocol(rows["proximity", "macro", "counterfactual"]["protocol"])
    assert facts["groups"] == "4" and facts["steps"] == "12"


def put_in(**changes):
    """Make three images without their finding: in one of the first two the model sees it from the beginning."""
    arrays = {
        "sample": np.arange(10, 13),
        "finding": np.array([0, 0, 1]),
        "map:counterfactual": np.ones((3, 8, 8), np.float32),
        "before": np.array([[0.2, 0.4], [0.7, 0.4], [0.3, 0.1]], np.float32),
        "after": np.array([[0.8, 0.6], [0.9, 0.4], [0.3, 0.4]], np.float32),
        "judge_before": np.full((3, 2), 0.1, np.float32),
        "judge_after": np.array([[0.6, 0.1], [0.2, 0.1], [0.1, 0.9]], np.float32),
        "judge_control": np.array([[0.1, 0.1], [0.6, 0.1], [0.1, 0.2]], np.float32),
        **changes,
    }
    return {f"enforced:{name}": values for name, values in arrays.items()}


def test_findings_put_in_are_scored_apart_from_those_removed(tmp_path):
    plain, more = write_explanations(tmp_path / "p.npz"), write_explanations(tmp_path / "e.npz", **put_in())
    before, rows = (by_name(score_explanations(p, RUN, ["nodule", "effusion"], bootstrap=20)) for p in (plain, more))
    own = {key for key in rows if "enforce" in key[0]}
    assert before.keys() == rows.keys() - own and all(rows[key] == before[key] for key in before)
    value = {key[:2]: rows[key]["value"] for key in own}
    assert [value["enforce_rate", name] for name in ("nodule", "effusion", "macro")] == [1, 0, 0.5]
    assert rows["enforce_rate", "nodule", "counterfactual"]["n"] == 1  # in the other it was seen already
    assert [value["judge_enforce_rate", name] for name in ("nodule", "effusion")] == [0.5, 1]
    assert [value["control_enforce_rate", name] for name in ("nodule", "effusion")] == [0.5, 0]
    assert value["enforce_probability_before", "nodule"] == pytest.approx(0.45)
    assert value["enforce_probability_after", "nodule"] == pytest.approx(0.85)
    assert value["control_enforce_probability", "effusion"] == pytest.approx(0.2)
    assert value["enforce_side_effect", "nodule"] == pytest.approx(0.1)
    assert value["judge_enforce_side_effect", "macro"] == pytest.approx(0)
    facts = parse_protocol(rows["enforce_rate", "macro", "counterfactual"]["protocol"])
    assert facts["groups"] == "3" and facts["guidance"] == "3"


def test_the_way_to_the_edit_is_scored_where_there_was_something_to_change(tmp_path):
    """Of four images the model saw the finding in three, before; the judge in all, and after it in none."""
    steps = np.linspace(0, 1, 11)
    before, after = np.array([0.9, 0.8, 0.7, 0.4]), np.array([0.1, 0.6, 0.2, 0.1])
    straight = before[:, None] + (after - before)[:, None] * steps
    judge, control = 1.0 - np.minimum(2 * steps, 1), np.ones(11)
    path = write_explanations(
        tmp_path / "e.npz",
        insertion=straight[:, 1:-1],
        judge_insertion=np.tile(judge[1:-1], (4, 1)),
        control_insertion=np.tile(control[1:-1], (4, 1)),
        before=np.array([[0.9, 0.1], [0.8, 0.1], [0.1, 0.7], [0.1, 0.4]]),
        after=np.array([[0.1, 0.1], [0.6, 0.1], [0.1, 0.2], [0.1, 0.1]]),
        judge_before=np.ones((4, 2)),
        judge_after=np.zeros((4, 2)),
        judge_control=np.ones((4, 2)),
    )
    rows = by_name(score_explanations(path, RUN, ["nodule", "effusion"], bootstrap=20))
    value = {key[:2]: row["value"] for key, row in rows.items()}
    assert value["cout", "nodule"] == pytest.approx(1 - (0.5 + 0.7))  # the area of a straight line is its middle
    assert value["cout", "effusion"] == pytest.approx(1 - 2 * 0.45)
    assert rows["cout", "effusion", "counterfactual"]["n"] == 1
    assert value["judge_cout", "macro"] == pytest.approx(1 - 2 * 0.25)
    assert value["control_cout", "macro"] == -1


def test_realism_is_a_distance_in_the_features_of_the_judge(tmp_path):
    """Gaussian features of the same spread: the distance is that of the means (Dowson & Landau 1982)."""
    rng = np.random.default_rng(0)
    test = rng.normal(size=(500, 3))
    seen = {
        "test": test,
        "counterfactual": test + np.array([2, 0, 0]),
        "control": test + np.array([0, 1, 0]),
        "image": test[:3],
    }
    path = write_explanations(
        tmp_path / "e.npz",
        **{f"features:{name}": values.astype(np.float32) for name, values in seen.items()},
        protocol=json.dumps({"judge": "fully_supervised", "steps": 12}),
    )
    rows = by_name(score_explanations(path, RUN, ["nodule", "effusion"], bootstrap=20))
    edit, control, unedited = (
        rows[f"{who}_frechet_distance", "macro", "counterfactual"] for who in ("edit", "control", "unedited")
    )
    assert edit["value"] == pytest.approx(4, abs=1e-4) and control["value"] == pytest.approx(1, abs=1e-4)
    facts = parse_protocol(edit["protocol"])
    assert (facts["judge"], facts["n_real"], facts["features"]) == ("fully_supervised", "500", "3")
    assert "flag" not in facts and edit["n"] == 500
    assert unedited["value"] == pytest.approx(frechet_distance(test[:3], test), rel=1e-4)
    assert parse_protocol(unedited["protocol"])["flag"] == "fewer images than the 3 features"


def test_what_was_seen_already_cannot_be_put_in(tmp_path):
    path = write_explanations(tmp_path / "e.npz", **put_in(before=np.full((3, 2), 0.9, np.float32)))
    row = by_name(score_explanations(path, RUN, ["a", "b"], bootstrap=20))["enforce_rate", "macro", "counterfactual"]
    assert math.isnan(row["value"]) and "not seen before" in row["protocol"]


def test_a_finding_nobody_saw_cannot_flip(tmp_path):
    path = write_explanations(tmp_path / "e.npz", before=np.full((4, 2), 0.1, np.float32))
    row = by_name(score_explanations(path, RUN, ["a", "b"], bootstrap=20))["flip_rate", "macro", "counterfactual"]
    assert math.isnan(row["value"]) and "seen before" in row["protocol"]


def test_a_region_over_the_whole_image_does_not_fail(tmp_path):
    path = write_explanations(tmp_path / "e.npz", region=np.ones((4, 8, 8), bool))
    rows = by_name(score_explanations(path, RUN, ["a", "b"], bootstrap=20))
    assert math.isnan(rows["change_ratio", "macro", "counterfactual"]["value"])
    assert rows["pointing", "macro", "counterfactual"]["value"] == 1


def test_arrays_that_do_not_fit_are_one_clear_message(tmp_path):
    path = write_explanations(tmp_path / "e.npz", before=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"e\.npz: 'before' holds 3 images where 'finding' holds 4"):
        score_explanations(path, RUN, ["a", "b"])
    path = write_explanations(tmp_path / "e.npz", **put_in(after=np.zeros((2, 2))))
    with pytest.raises(ValueError, match=r"e\.npz: 'after' holds 2 images where 'finding' holds 3"):
        score_explanations(path, RUN, ["a", "b"])


def test_costs_come_from_who_measured_them(tmp_path):
    cost = {"train_seconds": 12.5, "train_gflop": 7.0, "parameters": 600_000, "peak_memory_mib": None}
    run = {**RUN, "cost": {**cost, "device": "cpu (x)"}}
    generated = tmp_path / "generated.npz"
    np.savez(generated, cost=json.dumps({"ms_per_sample": 20.0, "calls_per_sample": 25}))
    explanations = write_explanations(tmp_path / "e.npz")
    rows = {r["metric"]: r for r in score_cost(run, generated=generated, explanations=explanations)}
    assert {metric: row["value"] for metric, row in rows.items()} == {
        "train_seconds": 12.5,
        "train_gflop": 7,
        "parameters": 600_000,
        "ms_per_sample": 20,
        "calls_per_sample": 25,
        "ms_per_counterfactual": 70,
        "calls_per_counterfactual": 24,
    }
    assert split_protocol(rows["ms_per_sample"]["protocol"])[0] == "device=cpu (x)"


def test_the_cost_of_a_map_bears_its_name(tmp_path):
    cost = {"ms_per_map": {"grad_cam": 1.5, "occlusion": 30.0}, "calls_per_map": {"grad_cam": 1, "occlusion": 26}}
    path = write_explanations(tmp_path / "e.npz", cost=json.dumps(cost))
    rows = {(r["metric"], parse_protocol(r["protocol"])["map"]): r["value"] for r in score_cost(RUN, explanations=path)}
    assert rows == {
        ("ms_per_map", "grad_cam"): 1.5,
        ("ms_per_map", "occlusion"): 30,
        ("calls_per_map", "grad_cam"): 1,
        ("calls_per_map", "occlusion"): 26,
    }
