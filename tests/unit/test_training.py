"""The loop, on a few dozen phantoms."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import jointdiff.training.loop as loop
from jointdiff.config import ConfigError
from jointdiff.data.store import open_store
from jointdiff.environment import environment, to_text
from jointdiff.files import read_json
from jointdiff.models import load_model
from jointdiff.registry import load_method
from jointdiff.training.loop import TrainingDivergedError, train
from tests.tiny import tiny_phantoms, tiny_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared store of 48 phantoms and a split of it."""
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


def spec(method="joint", steps=6, **training):
    return tiny_run(method, **{"steps": steps, "validate_every": 3, "log_every": 2, **training})


def weights(folder):
    return {str(p.relative_to(folder)): load_file(p) for p in sorted(folder.rglob("*.safetensors"))}


def assert_same_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for file in a:
        assert a[file].keys() == b[file].keys()
        assert all(torch.equal(a[file][name], b[file][name]) for name in a[file])


@contextmanager
def dies_after_checkpoint(monkeypatch, number=1):
    """Interrupt a training when it has saved so many checkpoints."""
    real, saved = loop.save_checkpoint, []

    def save_then_die(*args, **kwargs):
        real(*args, **kwargs)
        saved.append(1)
        if len(saved) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "save_checkpoint", save_then_die)
        yield


@pytest.mark.parametrize("method", ["joint", "fixmatch", "mean_teacher"])
@pytest.mark.parametrize("stop_after", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(data, tmp_path, monkeypatch, method, stop_after):
    run = spec(method, checkpoint_seconds=0.0)
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")

    with dies_after_checkpoint(monkeypatch, stop_after // 2):
        train(run, **data, out=tmp_path / "resumed", state=tmp_path / "state")
    assert not (tmp_path / "resumed/model").exists(), "nothing half is left where a whole result is looked for"
    train(run, **data, out=tmp_path / "resumed", state=tmp_path / "state")

    assert_same_weights(tmp_path / "whole/model", tmp_path / "resumed/model")
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "resumed")]
    assert lines[0] == lines[1]
    assert not list((tmp_path / "state").iterdir()), "the state is gone once the model stands"


@pytest.mark.parametrize("method", ["joint", "fixmatch"])
def test_previews_show_each_validation_and_change_nothing(data, tmp_path, method):
    for name, previews in (("plain", 0), ("watched", 4)):
        train(spec(method, previews=previews), **data, out=tmp_path / name, state=tmp_path / f"state-{name}")
    assert_same_weights(tmp_path / "plain/model", tmp_path / "watched/model")
    assert spec(method, previews=4).digest == spec(method).digest
    drawn = sorted(path.name for path in tmp_path.glob("*/previews/*"))
    assert drawn == (["0000003.png", "0000006.png"] if method == "joint" else [])
    for name in drawn:  # four images of three findings: two rows of three columns
        with Image.open(tmp_path / "watched/previews" / name) as image:
            assert image.size == (3 * 16, 2 * 16)
    assert not list((tmp_path / "state-watched").iterdir())


def test_kill_minus_nine_loses_nothing(data, tmp_path):
    run = spec(steps=40, checkpoint_seconds=0.0)
    train(run, **data, out=tmp_path / "whole", state=tmp_path / "state-whole")
    script = textwrap.dedent(
        f"""
        from jointdiff.config import RunSpec
        from jointdiff.training.loop import train
        run = RunSpec.model_validate_json({run.model_dump_json()!r})
        train(run, store={str(data["store"])!r}, split={str(data["split"])!r},
              out={str(tmp_path / "killed")!r}, state={str(tmp_path / "state")!r})
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "state/checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    train(run, **data, out=tmp_path / "killed", state=tmp_path / "state")
    assert_same_weights(tmp_path / "whole/model", tmp_path / "killed/model")


def test_drawn_images_teach_what_the_same_labelled_ones_would(data, tmp_path, monkeypatch):
    """Handed over as drawn, the labelled images of the split leave the same weights, also of a resumed training."""
    store = open_store(data["store"])
    rows = store.split_rows(data["split"])["labelled"]
    for name, images in (("same", store.images[rows]), ("other", 255 - store.images[rows])):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=store.labels[rows])
    run = spec("supervised", checkpoint_seconds=0.0)
    alone = run.model_copy(update={"synthetic": "drawn", "real_labels": False})
    train(run, **data, out=tmp_path / "real", state=tmp_path / "state-real")
    with dies_after_checkpoint(monkeypatch):
        train(alone, **data, synthetic=tmp_path / "other.npz", out=tmp_path / "drawn", state=tmp_path / "state")
    train(alone, **data, synthetic=tmp_path / "same.npz", out=tmp_path / "drawn", state=tmp_path / "state")
    assert_same_weights(tmp_path / "real/model", tmp_path / "drawn/model")


def test_state_of_other_code_or_settings_is_not_resumed(data, tmp_path, monkeypatch):
    run = spec("supervised", checkpoint_seconds=0.0)
    with dies_after_checkpoint(monkeypatch):
        train(run, **data, out=tmp_path / "a", state=tmp_path / "state", code_version="old")
    steps = [json.loads(line)["step"] for line in (tmp_path / "state/metrics.jsonl").read_text().splitlines()]
    assert steps == [2]
    train(run, **data, out=tmp_path / "a", state=tmp_path / "state", code_version="new")
    train(run, **data, out=tmp_path / "b", state=tmp_path / "state-b", code_version="new")
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()


def test_state_of_another_split_is_not_resumed(data, tmp_path, monkeypatch):
    """What was a test image of the old split may be one to learn from in the new one, and the other way round."""
    run = spec("supervised", checkpoint_seconds=0.0)
    with dies_after_checkpoint(monkeypatch):
        train(run, **data, out=tmp_path / "a", state=tmp_path / "state")
    turned = pd.read_parquet(data["split"])
    turned["role"] = turned["role"].replace({"labelled": "test", "test": "labelled"})
    turned.to_parquet(tmp_path / "split.parquet")
    other = {**data, "split": tmp_path / "split.parquet"}
    train(run, **other, out=tmp_path / "a", state=tmp_path / "state")
    train(run, **other, out=tmp_path / "b", state=tmp_path / "state-b")
    assert_same_weights(tmp_path / "a/model", tmp_path / "b/model")


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """Model folders of SimCLR with two seeds."""
    folder = tmp_path_factory.mktemp("pretrained")
    for seed in (0, 1):
        run = spec("simclr", steps=3).model_copy(update={"seed": seed})
        train(run, **data, out=folder / str(seed), state=folder / "state")
    return [folder / str(seed) / "model" for seed in (0, 1)]


def test_a_start_gives_the_network_but_for_the_head(data, tmp_path, pretrained):
    for name, start in (("started", pretrained[0]), ("fresh", None)):
        train(spec("supervised", steps=0), **data, out=tmp_path / name, state=tmp_path / "state", start=start)
    source, started, fresh = (
        load_model(folder).state_dict()
        for folder in (pretrained[0], tmp_path / "started/model", tmp_path / "fresh/model")
    )
    assert started.keys() == fresh.keys() == {name for name in source if name.startswith("net.")}
    for name, value in started.items():
        from_source, as_fresh = torch.equal(value, source[name]), torch.equal(value, fresh[name])
        assert as_fresh and not from_source if name.startswith("net.head.") else from_source, name
    assert any(not torch.equal(started[name], fresh[name]) for name in started)


def test_another_network_is_no_start_and_both_are_named(data, tmp_path, pretrained):
    run = spec("fixmatch")
    wide = run.model_copy(update={"settings": {**run.settings, "width": 2}})
    says = (
        r"methods\.fixmatch\.start: FixMatch \(WRN-10-2\) cannot start from SimCLR \(WRN-10-1\): "
        "their networks differ; give both entries the same network"
    )
    with pytest.raises(ConfigError, match=says):
        train(wide, **data, out=tmp_path, state=tmp_path / "state", start=pretrained[0])


@pytest.mark.parametrize("method", ["joint", "random"])
def test_what_has_no_such_network_cannot_start(data, tmp_path, pretrained, method):
    with pytest.raises(ConfigError, match=rf"methods\.{method}\.start: \w+ cannot start from SimCLR: remove `start`"):
        train(spec(method), **data, out=tmp_path, state=tmp_path / "state", start=pretrained[0])


def test_state_of_another_start_is_not_resumed(data, tmp_path, monkeypatch, pretrained):
    """Even of the same run, when what it begins with was trained again."""
    run = spec("supervised", checkpoint_seconds=0.0)
    with dies_after_checkpoint(monkeypatch):
        train(run, **data, out=tmp_path / "a", state=tmp_path / "state", start=pretrained[0])
    train(run, **data, out=tmp_path / "a", state=tmp_path / "state", start=pretrained[1])
    train(run, **data, out=tmp_path / "b", state=tmp_path / "state-b", start=pretrained[1])
    assert_same_weights(tmp_path / "a/model", tmp_path / "b/model")


def test_labels_choose_no_weights_of_an_encoder_that_is_to_see_none(data, tmp_path, monkeypatch):
    scores = iter([0.9, 0.5, 0.1])
    monkeypatch.setattr(loop, "_validate", lambda *args, **kwargs: {"auroc": next(scores)})
    train(spec("simclr", steps=9), **data, out=tmp_path, state=tmp_path / "state")
    cost = read_json(tmp_path / "run.json")["cost"]
    assert (cost["best_step"], cost["best_validation"]) == (9, 0.1)


def test_validation_asks_no_more_images_at_once_than_four_batches(data, tmp_path, monkeypatch):
    sizes = []

    def validate(method, batches, labels):
        sizes.extend(len(batch) for batch in batches)
        return {"auroc": 0.5}

    run = spec("supervised", steps=3, batch_size=1)
    monkeypatch.setattr(load_method(run.method), "validate", validate)
    train(run, **data, out=tmp_path / "a", state=tmp_path / "state")
    assert sizes == [4, 4]


def test_latents_come_with_their_autoencoder(data, tmp_path):
    with pytest.raises(ValueError, match="belong together"):
        train(spec(), **data, out=tmp_path, state=tmp_path / "state", latents=tmp_path / "latents.npy")


@pytest.mark.parametrize("method", ["joint", "fixmatch", "mean_teacher"])
def test_a_method_of_unlabelled_images_needs_some(data, tmp_path, method):
    run = spec(method)
    none = run.model_copy(update={"settings": {**run.settings, "unlabelled_ratio": 0}})
    with pytest.raises(ConfigError, match="unlabelled_ratio"):
        train(none, **data, out=tmp_path, state=tmp_path / "state")


def test_what_a_training_leaves_behind(data, tmp_path):
    told = []
    run = spec("supervised", steps=6)
    train(run, **data, out=tmp_path, state=tmp_path / "state", code_version="c0de", track=told.append)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4, 6]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [3, 6]
    assert {"loss", "supervised", "gradient_norm", "images"} <= lines[0].keys()
    assert len(told) == 2
    record = read_json(tmp_path / "run.json")
    assert record["run_id"] == run.digest
    assert record["code_version"] == "c0de"
    assert record["roles"] == {"labelled": 12, "validation": 8, "unlabelled": 16, "test": 12}
    assert record["environment"] == environment()
    assert f"\n- made with {to_text(environment())}\n" in (tmp_path / "model/README.md").read_text()
    cost = record["cost"]
    assert cost["parameters"] == sum(p.numel() for p in load_model(tmp_path / "model").parameters())
    assert cost["network"] == "WRN-10-1"
    assert cost["train_seconds"] > 0
    assert cost["images_per_second"] == pytest.approx(24 / cost["train_seconds"])


def test_a_training_resumed_elsewhere_names_both_machines(data, tmp_path, monkeypatch):
    elsewhere = environment() | {"torch": "2.6.0", "instructions": "AVX2"}
    run = spec("supervised", checkpoint_seconds=0.0)
    with monkeypatch.context() as patched, dies_after_checkpoint(monkeypatch):
        patched.setattr(loop, "environment", lambda: elsewhere)
        train(run, **data, out=tmp_path, state=tmp_path / "state")
    train(run, **data, out=tmp_path, state=tmp_path / "state")
    found = read_json(tmp_path / "run.json")["environment"]
    assert found == environment() | {
        "torch": f"2.6.0 then {torch.__version__}",
        "instructions": " then ".join(dict.fromkeys(["AVX2", environment()["instructions"]])),
    }


def test_the_best_validated_average_is_kept(data, tmp_path, monkeypatch):
    scores = iter([0.9, 0.9, 0.1])
    seen = []

    def fake(method, *args, **kwargs):
        seen.append({name: value.clone() for name, value in method.state_dict().items()})
        return {"auroc": next(scores)}

    monkeypatch.setattr(loop, "_validate", fake)
    train(spec("supervised", steps=9), **data, out=tmp_path, state=tmp_path / "state")
    kept = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept), "the later of two equals"
    assert read_json(tmp_path / "run.json")["cost"]["best_step"] == 6


def test_a_control_needs_no_training(data, tmp_path):
    train(spec("random", steps=50), **data, out=tmp_path, state=tmp_path / "state")
    assert read_json(tmp_path / "run.json")["cost"]["parameters"] == 0
    assert (tmp_path / "model/model.safetensors").is_file()


def test_one_process_trains_in_either_precision(data, tmp_path):
    for precision in ("fp32", "bf16", "fp32"):
        run = spec("supervised", steps=2, precision=precision)
        train(run, **data, out=tmp_path / precision, state=tmp_path / "state")
        assert read_json(tmp_path / precision / "run.json")["cost"]["precision"] == precision


def test_a_diverging_loss_names_its_term(data, tmp_path, monkeypatch):
    run = spec("supervised")
    cls = type(loop.build_method(run, open_store(data["store"]).info))
    monkeypatch.setattr(cls, "losses", lambda self, *a: {"supervised": self.net.head.weight.sum() * float("nan")})
    with pytest.raises(TrainingDivergedError, match=r"supervised.* not finite within the steps 1 to 2; no checkpoint"):
        train(run, **data, out=tmp_path, state=tmp_path / "state")


# A fixed-seed trace of losses: a change of the numbers is either meant (then the trace changes with it) or a bug.
TRACE = {
    "supervised": [0.732007, 0.745123, 0.747357],
    "joint": [1.199386, 1.184303, 1.174468],
}


@pytest.mark.parametrize("method", TRACE)
def test_the_loss_trace_is_unchanged(data, tmp_path, method):
    train(spec(method, log_every=1, steps=3), **data, out=tmp_path, state=tmp_path / "state")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses == pytest.approx(TRACE[method], rel=1e-3)
