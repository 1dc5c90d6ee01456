"""What trained models are asked for, on a few phantoms and barely trained weights."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jointdiff.batches import image_batches
from jointdiff.config import ConfigError, Explanation, Generation, Voting
from jointdiff.data.store import open_store
from jointdiff.evaluate.generation import score_generated
from jointdiff.evaluate.votes_file import read_votes
from jointdiff.explain.localisation import score_explanations
from jointdiff.files import read_json, write_sums
from jointdiff.inference.classify import classify, classify_by_votes
from jointdiff.inference.explain import explain
from jointdiff.inference.generate import generate, wanted_labels
from jointdiff.method import to_bytes, to_unit_range
from jointdiff.methods.joint import JointDiffusion
from jointdiff.models import load_model, save_model
from jointdiff.nets.perceptual import Perceptual
from jointdiff.training.loop import train
from tests.tiny import tiny_phantoms, tiny_run

METHODS = ("joint", "supervised", "random")
QUICK = Explanation(images_per_finding=2, steps=2, noises=2, batch_size=1)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Prepare phantoms and train one tiny cell of three methods on the same split."""
    folder = tmp_path_factory.mktemp("cells")
    data = tiny_phantoms(folder, labelled=10, validation=8, unlabelled=10, test=20)
    for method in METHODS:
        train(tiny_run(method, steps=2), **data, state=folder / "state", out=folder / method)
    return folder


def test_predictions_hold_every_validation_and_test_image(cells, tmp_path):
    data = {"store": cells / "store", "split": cells / "split.parquet"}
    classify(cells / "supervised/model", **data, out=tmp_path / "p.parquet", batch_size=7)
    table = pq.read_table(tmp_path / "p.parquet")
    store = open_store(cells / "store")
    assert table.column("role").to_pylist() == ["validation"] * 8 + ["test"] * 20
    rows = np.r_[10:18, 28:48]
    assert table.column("sample_id").to_pylist() == store.sample_ids[rows].tolist()
    assert table.column("label:effusion").to_pylist() == store.labels[rows, 2].tolist()
    model = load_model(cells / "supervised/model")
    with torch.no_grad():
        one = model.predict(to_unit_range(torch.from_numpy(store.images[rows[3:4]].copy())).permute(0, 3, 1, 2))
    assert table.column("score:nodule")[3].as_py() == pytest.approx(one[0, 0].item(), abs=1e-5)
    assert json.loads(table.schema.metadata[b"cost"])["ms_per_image"] > 0


def test_generated_images_do_not_depend_on_the_batch_size(cells, tmp_path):
    images = []
    for batch_size in (3, 8):
        plan = Generation(images=8, steps=2, batch_size=batch_size)
        out = tmp_path / f"{batch_size}.npz"
        generate(cells / "joint/model", out=out, picture=tmp_path / "g.png", seed=0, settings=plan)
        with np.load(out) as stored:
            images.append(stored["images"])
            assert stored["labels"].tolist() == wanted_labels("multi_label", 8, 3).tolist()
            assert len(set(stored["seeds"].tolist())) == 8
    assert images[0].shape == (8, 16, 16, 1)
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1
    assert (tmp_path / "g.png").stat().st_size > 1000


def test_generated_images_are_scored(cells, tmp_path):
    plan = Generation(images=8, steps=2)
    generate(cells / "joint/model", out=tmp_path / "g.npz", picture=tmp_path / "g.png", seed=0, settings=plan)
    rows = score_generated(
        tmp_path / "g.npz",
        run=read_json(cells / "joint/run.json"),
        extractor=cells / "supervised/model",
        store=cells / "store",
        split=cells / "split.parquet",
        picture=tmp_path / "nearest.png",
    )
    by_metric = {row["metric"]: row for row in rows}
    assert by_metric["frechet_distance"]["value"] > 0
    assert "extractor=supervised" in by_metric["frechet_distance"]["protocol"]
    assert "flag=" in by_metric["frechet_distance"]["protocol"], "8 images are fewer than the features"
    assert np.isnan(by_metric["fid"]["value"])
    assert "reason=weights absent" in by_metric["fid"]["protocol"]
    for metric in ("image_precision", "image_recall", "image_coverage", "near_copies", "feature_near_copies"):
        assert 0 <= by_metric[metric]["value"] <= 1, metric
    assert by_metric["kernel_distance_real"]["value"] < by_metric["kernel_distance"]["value"], (
        "noise is far from images"
    )
    assert by_metric["nearest_ratio"]["value"] > 0 and (tmp_path / "nearest.png").stat().st_size > 1000


@pytest.fixture(scope="module")
def undecided(cells, tmp_path_factory):
    """A joint model that finds each finding in half of the unlabelled images."""
    model = load_model(cells / "joint/model")
    store = open_store(cells / "store")
    rows = store.split_rows(cells / "split.parquet")["unlabelled"]
    (images,) = image_batches(store.images, rows, batch_size=len(rows), device=torch.device("cpu"))
    with torch.no_grad():
        model.head.net[-1].bias -= model.logits(images).quantile(0.5, dim=0)
    folder = tmp_path_factory.mktemp("undecided")
    save_model(model, folder, run=tiny_run("joint"))
    return folder


def test_images_are_drawn_for_what_the_model_says_of_unlabelled_ones(cells, undecided, tmp_path, monkeypatch):
    asked, predict = [], JointDiffusion.predict
    monkeypatch.setattr(JointDiffusion, "predict", lambda self, images: asked.append(images) or predict(self, images))
    plan = Generation(images=8, steps=2, guidance=500.0, labels="pseudo")
    place = {"store": cells / "store", "split": cells / "split.parquet"}
    generate(undecided, out=tmp_path / "g.npz", picture=tmp_path / "g.png", seed=0, settings=plan, **place)
    store, shown = open_store(place["store"]), to_bytes(asked[0]).permute(0, 2, 3, 1).numpy()
    rows = [int(np.flatnonzero((store.images == image).all(axis=(1, 2, 3))).item()) for image in shown]
    assert len(set(rows)) == 8
    assert set(rows) <= set(store.split_rows(place["split"])["unlabelled"].tolist())
    with np.load(tmp_path / "g.npz") as stored:
        drawn, labels, seeds = (stored[name] for name in ("images", "labels", "seeds"))
    assert len(asked) == 2, "what was drawn is asked about as well, and nothing else"
    assert np.array_equal(to_bytes(asked[1]).permute(0, 2, 3, 1).numpy(), drawn)
    model = load_model(undecided)
    with torch.no_grad():
        assert np.array_equal(labels, predict(model, asked[0]).round().numpy())
    assert len(np.unique(labels, axis=0)) > 2
    how = {"steps": 2, "sampler": plan.sampler, "guidance": 500.0}
    for wanted, alike in ((labels, True), (1 - labels, False)):
        again = to_bytes(model.sample(torch.from_numpy(wanted), torch.from_numpy(seeds), **how)).permute(0, 2, 3, 1)
        assert (np.abs(again.numpy().astype(int) - drawn).max() <= 1) == alike


def test_pseudo_labels_need_images_to_take_them_from(cells, tmp_path):
    with pytest.raises(ConfigError, match="'pseudo' needs a data set"):
        generate(
            cells / "joint/model",
            out=tmp_path / "g.npz",
            picture=tmp_path / "g.png",
            seed=0,
            settings=Generation(labels="pseudo"),
        )


def test_labels_are_asked_for_in_turn():
    assert wanted_labels("one_of_k", 4, 3).argmax(1).tolist() == [0, 1, 2, 0]
    assert wanted_labels("multi_label", 3, 2).tolist() == [[0, 0], [1, 0], [0, 1]]


def run_explain(cells, tmp_path, method, explainers, settings=QUICK, **changes):
    out = tmp_path / f"{method}.npz"
    place = {"store": cells / "store", "split": cells / "split.parquet", **changes}
    explain(
        cells / method / "model",
        **place,
        out=out,
        picture=tmp_path / "e.png",
        explainers=explainers,
        seed=0,
        settings=settings,
        judge=cells / "supervised/model",
    )
    with np.load(out) as stored:
        return dict(stored)


def test_every_method_explains_the_same_images(cells, tmp_path):
    edits = run_explain(cells, tmp_path, "joint", ["counterfactual"])
    cams = run_explain(cells, tmp_path, "supervised", ["grad_cam"])
    floor = run_explain(cells, tmp_path, "random", ["random_map", "centre_prior"])
    for other in (cams, floor):
        assert np.array_equal(edits["sample"], other["sample"])
        assert np.array_equal(edits["region"], other["region"])
    store = open_store(cells / "store")
    for row, k, region in zip(edits["sample"], edits["finding"], edits["region"], strict=True):
        assert store.labels[row, k] == 1
        assert np.array_equal(region, store.regions(int(row), store.info.labels.names[k]))
    assert edits["map:counterfactual"].shape == (len(edits["sample"]), 16, 16)
    difference = np.abs(edits["counterfactual"].astype(float) - edits["image"]).mean(3) / 255
    assert np.abs(edits["map:counterfactual"] - difference).max() < 0.005
    assert {"before", "after", "judge_before", "judge_after", "judge_control"} <= edits.keys()
    assert json.loads(str(edits["cost"]))["calls_per_counterfactual"] == 2 * (3 * 2 - 1)
    assert (tmp_path / "e.png").stat().st_size > 1000


def test_the_way_to_an_edit_and_what_the_judge_sees_of_it(cells, tmp_path):
    edits = run_explain(cells, tmp_path, "joint", ["counterfactual"])
    own = np.arange(len(edits["finding"])), edits["finding"]
    for who, first, last in (
        ("", "before", "after"),
        ("judge_", "judge_before", "judge_after"),
        ("control_", "judge_before", "judge_control"),
    ):
        path = edits[f"{who}insertion"]
        assert path.shape == (len(edits["finding"]), 9)
        low, high = np.sort([edits[first][own], edits[last][own]], axis=0)
        assert (
            (path > low[:, None] - 0.1) & (path < high[:, None] + 0.1)
        ).all()  # of a model that hardly knows a thing
    judge, store = load_model(cells / "supervised/model"), open_store(cells / "store")
    test = store.split_rows(cells / "split.parquet")["test"]
    shown = {name: edits[name] for name in ("image", "control", "counterfactual")} | {"test": store.images[test]}
    for name, pixels in shown.items():
        with torch.no_grad():
            features = judge.features(to_unit_range(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)))
        assert np.abs(edits[f"features:{name}"] - features.numpy()).max() < 1e-4, name
    assert json.loads(str(edits["protocol"]))["judge"] == "supervised"
    assert edits["features:test"].shape[0] == 20


def test_counterfactuals_do_not_depend_on_the_batch_size(cells, tmp_path):
    one = run_explain(cells, tmp_path, "joint", ["counterfactual"])
    other = run_explain(
        cells, tmp_path, "joint", ["counterfactual"], settings=QUICK.model_copy(update={"batch_size": 5})
    )
    assert np.abs(one["map:counterfactual_control"] - other["map:counterfactual_control"]).max() < 1e-4


def test_the_picture_shows_a_spread_only_of_several_noises(cells, tmp_path):
    widths = []
    for noises in (1, 2):
        settings = QUICK.model_copy(update={"noises": noises})
        run_explain(cells, tmp_path, "joint", ["counterfactual"], settings=settings)
        with Image.open(tmp_path / "e.png") as picture:
            widths.append(picture.width)
    assert widths[0] < widths[1]


def test_findings_are_put_into_images_without_them(cells, tmp_path):
    plain = run_explain(cells, tmp_path, "joint", ["counterfactual", "random_map"])
    settings = QUICK.model_copy(update={"healthy_per_finding": 3, "batch_size": 4})
    edits = run_explain(cells, tmp_path, "joint", ["counterfactual", "random_map"], settings=settings)
    enforced = {key.removeprefix("enforced:"): edits.pop(key) for key in list(edits) if key.startswith("enforced:")}
    assert plain.keys() == edits.keys()
    for key in plain.keys() - {"cost"}:  # what is removed stays the same, but for rounding by another batch size
        assert plain[key].dtype.kind in "US" or np.abs(plain[key].astype(float) - edits[key]).max() <= 1, key
    assert plain["protocol"] == edits["protocol"]
    store = open_store(cells / "store")
    test = set(store.split_rows(cells / "split.parquet")["test"].tolist())
    assert np.bincount(enforced["finding"]).tolist() == [3, 3, 3] and set(enforced["sample"].tolist()) <= test
    assert (store.labels[enforced["sample"], enforced["finding"]] == 0).all()
    assert np.array_equal(enforced["group"], store.groups[enforced["sample"]].astype(str))
    assert np.array_equal(enforced["image"], store.images[enforced["sample"]])
    of_removal = {"region", "map:random_map", "protocol", "cost", "environment"} | {
        key for key in edits if "features:" in key or "insertion" in key
    }
    assert enforced.keys() == edits.keys() - of_removal
    assert (tmp_path / "e.png").stat().st_size > 1000
    rows = score_explanations(
        tmp_path / "joint.npz", read_json(cells / "joint/run.json"), store.info.labels.names, bootstrap=5
    )
    scored = {row["metric"] for row in rows}
    assert {"enforce_rate", "judge_enforce_rate", "control_enforce_rate"} <= scored
    assert {"cout", "judge_cout", "control_cout", "edit_frechet_distance"} <= scored


def test_the_lpips_of_edits_is_measured_where_there_are_weights(cells, tmp_path):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(5)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1.pth")
    weights = tmp_path / "squeezenet1_1.pth"
    edits = run_explain(cells, tmp_path, "joint", ["counterfactual"], perceptual=weights)
    lpips = Perceptual(weights)
    pairs = [to_unit_range(torch.from_numpy(edits[name])).permute(0, 3, 1, 2) for name in ("image", "counterfactual")]
    np.testing.assert_allclose(edits["lpips"], lpips(*pairs).numpy(), rtol=1e-4)
    rows = score_explanations(
        tmp_path / "joint.npz",
        read_json(cells / "joint/run.json"),
        open_store(cells / "store").info.labels.names,
        bootstrap=5,
    )
    (macro,) = [row for row in rows if (row["metric"], row["finding"]) == ("lpips", "macro")]
    by_finding = [edits["lpips"][edits["finding"] == k].mean() for k in range(3)]
    assert macro["value"] == pytest.approx(np.mean(by_finding), rel=1e-5) and "perceptual=" in macro["protocol"]


def test_the_model_is_told_which_findings_go_and_which_come(cells, tmp_path, monkeypatch):
    asked, edit = [], JointDiffusion.counterfactual

    def counterfactual(self, images, finding, target, seeds, **how):
        asked.append((finding, target, len(images)))
        return edit(self, images, finding, target, seeds, **how)

    monkeypatch.setattr(JointDiffusion, "counterfactual", counterfactual)
    settings = QUICK.model_copy(update={"healthy_per_finding": 3, "batch_size": 8})
    run_explain(cells, tmp_path, "joint", ["counterfactual"], settings=settings)
    assert asked == [(k, target, count) for target, count in ((0.0, 2), (1.0, 3)) for k in range(3)]


EVERY_MAP = ["grad_cam", "grad_cam_plus_plus", "integrated_gradients", "occlusion"]


@pytest.mark.parametrize("method", ["supervised", "joint"])
def test_saliency_maps_of_a_classifier_and_of_the_joint_model(cells, tmp_path, method):
    found = run_explain(cells, tmp_path, method, EVERY_MAP)
    for name in EVERY_MAP:
        assert found[f"map:{name}"].shape == found["region"].shape
        assert (found[f"map:{name}"] >= 0).all() and np.isfinite(found[f"map:{name}"]).all()
    cost = json.loads(str(found["cost"]))
    # One pass each, 12 nodes of the way from grey, and 5 x 5 windows beside the image as it is.
    calls = {"grad_cam": 1, "grad_cam_plus_plus": 1, "integrated_gradients": 12, "occlusion": 26}
    assert cost["calls_per_map"] == calls
    assert cost["ms_per_map"].keys() == calls.keys() and min(cost["ms_per_map"].values()) > 0


def test_grad_cam_alone_needs_no_healthy_images(cells, tmp_path):
    settings = QUICK.model_copy(update={"healthy_per_finding": 3})
    assert not any("enforced" in key for key in run_explain(cells, tmp_path, "supervised", ["grad_cam"], settings))


def test_a_data_set_without_regions_is_still_explained(cells, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in (cells / "store").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    info = read_json(folder / "dataset.json")
    (folder / "dataset.json").write_text(json.dumps({**info, "has_regions": False}))
    write_sums(folder)
    edits = run_explain(cells, tmp_path, "joint", ["counterfactual"], store=folder)
    assert len(edits["sample"]) > 0


@pytest.mark.parametrize(
    ("method", "explainer"), [("supervised", "counterfactual"), ("random", "grad_cam"), ("random", "occlusion")]
)
def test_a_method_that_cannot_explain_says_so(cells, tmp_path, method, explainer):
    with pytest.raises(ConfigError, match=f"cannot give '{explainer}'; remove it"):
        run_explain(cells, tmp_path, method, [explainer])


def test_a_method_that_cannot_generate_says_so(cells, tmp_path):
    with pytest.raises(ConfigError, match="draws no images; set generate: false"):
        generate(
            cells / "supervised/model",
            out=tmp_path / "g.npz",
            picture=tmp_path / "g.png",
            seed=0,
            settings=Generation(),
        )


def test_votes_on_some_validation_images_and_every_test_image(cells, tmp_path):
    data = {"store": cells / "store", "split": cells / "split.parquet"}
    run = tiny_run("diffusion_classifier", steps=2)
    train(run, **data, out=tmp_path, state=tmp_path / "state")
    voting = Voting(trials=6, block=2, validation_images=3)
    classify_by_votes(
        tmp_path / "model",
        **data,
        out=tmp_path / "predictions.parquet",
        votes=tmp_path / "votes.parquet",
        seed=0,
        voting=voting,
        batch_size=5,
        device="cpu",
    )
    votes = read_votes(tmp_path / "votes.parquet")
    roles = open_store(data["store"]).split_rows(data["split"])
    assert (votes.role == "validation").sum() == 3
    assert (votes.role == "test").sum() == len(roles["test"])
    assert votes.errors.shape[1:] == (6, 6), "six trials, absence and presence of three findings"
    assert votes.cost["calls_per_image"] == 36
    out = {"out": tmp_path / "p.parquet", "votes": tmp_path / "v.parquet"}
    with pytest.raises(ConfigError, match="holds no trials"):
        classify_by_votes(cells / "supervised" / "model", **data, **out, seed=0, voting=voting)
