"""A trained model and a user's images: tables and pictures, on models that were never trained."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jointdiff.apply import (
    Answers,
    explain_images,
    find_labels,
    list_images,
    predict_images,
    sample_images,
    split_labels,
)
from jointdiff.config import ConfigError, Explanation, Generation, Voting
from jointdiff.data.source import Augmentations, DataInfo, LabelSpec
from jointdiff.inference.generate import generate
from jointdiff.method import to_unit_range
from jointdiff.models import load_model, save_model
from jointdiff.training.loop import build_method
from tests.tiny import tiny_run

DATA = DataInfo(
    name="toy", title="Toys", labels=LabelSpec("multi_label", ("nodule", "=effusion", "mass")), channels=1, size=16,
    augmentations=Augmentations(), samples=1, digest="", has_regions=False,
)  # fmt: skip
CLASSES = replace(DATA, labels=LabelSpec("one_of_k", ("cat", "dog", "frog")), channels=3, resize="centre_crop")
VOTING, HOW = Voting(trials=5), Explanation(steps=2, noises=1)


@pytest.fixture
def saved(tmp_path: Path):
    def save(name: str, data: DataInfo = DATA, options: dict[str, str] | None = None) -> Path:
        torch.manual_seed(0)
        run = tiny_run(name, dataset="toy").model_copy(update={"options": options or {}})
        save_model(build_method(run, data).eval(), tmp_path / name, run=run)
        return tmp_path / name

    return save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder of five grey images of the size of the model, one of them further below, and what is no image."""
    rng, folder = np.random.default_rng(0), tmp_path / "given"
    (folder / "below").mkdir(parents=True)
    for name in ("b", "a", "d", "c", "below/a"):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def column(answers: Answers, name: str) -> list:
    return [line[answers.header.index(name)] for line in answers.lines]


def tensor(*paths: Path) -> torch.Tensor:
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return to_unit_range(torch.from_numpy(pixels.copy())[:, None])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# Files


def test_folders_are_listed_sorted_and_without_what_is_written_there(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in list_images([folder / "c.png", folder])]
    assert names == ["c.png", "a.png", "b.png", "below/a.png", "d.png"]
    assert len(list_images([folder], skip=folder / "below")) == 4
    (folder / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no images"):
        list_images([folder / "empty"])
    assert list_images([folder / "c.png", folder / "empty"]) == [folder / "c.png", folder / "empty"]


# Prediction


@pytest.mark.parametrize("name", ["joint", "supervised", "random"])
def test_probabilities_are_those_of_the_method(name: str, saved, folder: Path, tmp_path: Path) -> None:
    files = list_images([folder])
    answers = predict_images(saved(name), files, voting=VOTING, batch_size=2)
    probabilities = [f"probability:{label}" for label in DATA.labels.names]
    assert answers.header == ("image", *probabilities, "prediction", "uncertainty")
    assert column(answers, "image") == [str(file) for file in files]
    with torch.no_grad():
        expected = load_model(tmp_path / name).predict(tensor(*files)).numpy()
    np.testing.assert_allclose([line[1:4] for line in answers.lines], expected, atol=1e-5)
    for line, row in zip(answers.lines, expected, strict=True):
        assert line[4] == ";".join(label for label, p in zip(DATA.labels.names, row, strict=True) if p >= 0.5)
        entropy = -(row * np.log2(row) + (1 - row) * np.log2(1 - row))
        assert line[5] == pytest.approx(entropy.mean(), abs=1e-4)
    answers.write(tmp_path / "p.csv")
    assert "'=effusion" not in (header := (tmp_path / "p.csv").read_text().splitlines()[0]) and "=effusion" in header


@pytest.mark.parametrize("data", [DATA, CLASSES], ids=["findings", "classes"])
def test_a_diffusion_classifier_votes_whatever_the_batch(data: DataInfo, saved, folder: Path) -> None:
    model, files = saved("diffusion_classifier", data), list_images([folder])
    together = predict_images(model, files, voting=VOTING)
    alone = predict_images(model, files[::-1], voting=VOTING, batch_size=1)
    assert together.lines == alone.lines[::-1]
    conditions = 6 if data is DATA else 3
    assert set(column(together, "calls")) == {5 * conditions}
    assert all(0 <= doubt <= 1 for doubt in column(together, "uncertainty"))
    shares = np.array([line[1:4] for line in together.lines])
    np.testing.assert_allclose(shares * 5, np.round(shares * 5), atol=1e-4)  # of five trials


def test_classes_are_named_and_a_formula_is_neutralised(saved, folder: Path, tmp_path: Path) -> None:
    labels = LabelSpec("one_of_k", ("=cat", "=dog"))
    answers = predict_images(saved("random", replace(CLASSES, labels=labels)), list_images([folder]), voting=VOTING)
    for line in answers.lines:
        assert line[3] == labels.names[int(line[2] > line[1])]
        assert line[1] + line[2] == pytest.approx(1.0, abs=1e-6)
    answers.write(tmp_path / "p.csv")
    assert {line["prediction"] for line in read(tmp_path / "p.csv")} <= {"'=cat", "'=dog"}


def test_images_become_what_the_model_was_trained_on(saved, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "colour.png")
    Image.open(tmp_path / "colour.png").convert("L").save(tmp_path / "grey.png")
    files = [tmp_path / "colour.png", tmp_path / "grey.png"]
    colour, grey = predict_images(saved("supervised"), files, voting=VOTING).lines
    assert colour[1:] == grey[1:]
    assert len(predict_images(saved("supervised", CLASSES), files, voting=VOTING).lines) == 2

    Image.fromarray((np.arange(256, dtype=np.uint16) * 4).reshape(16, 16)).save(tmp_path / "deep.png")
    said = [
        predict_images(saved("random", options=options), [tmp_path / "deep.png"], voting=VOTING).lines
        for options in ({}, {"window": "full"})
    ]
    assert said[0] != said[1], "the window of the data set is applied"


def test_a_file_that_is_no_image_costs_no_other(saved, folder: Path) -> None:
    (folder / "bb.png").write_bytes(b"no image")
    answers = predict_images(saved("random"), [*list_images([folder]), folder / "gone.png"], voting=VOTING)
    assert len(answers.lines) == 5
    assert ["bb.png" in answers.unreadable[0], "gone.png" in answers.unreadable[1]] == [True, True]


def test_odd_files_and_names_cost_no_other(saved, folder: Path, tmp_path: Path) -> None:
    """Pictures of an explanation bear names that every disk takes, and each its own."""
    long, undecodable = f"{'ü' * 125}.png", os.fsdecode(b"\xff\n.png")
    for name in (long, undecodable, "A.png", "a.JPG"):
        Image.open(folder / "a.png").convert("L").save(folder / name, "png")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    files = [
        *list_images([folder, Path("x" * 300 + ".png")], skip=folder / "out"),
        *list_images([folder / "c.png", folder / "folder.png"]),
    ]
    answers = predict_images(saved("random"), files, voting=VOTING)
    found = [re.search(r"(\w+)\.png", text)[1] for text in answers.unreadable]
    assert sorted(found) == ["empty", "folder", "gone", "loop", "pipe", "x" * 300]
    answers.write(tmp_path / "predictions.csv")
    named = [line["image"] for line in read(tmp_path / "predictions.csv")]
    assert f"{folder}/\\xff\n.png" in named and len(named) == 9
    odd = [*sorted(folder.glob("[aAü]*")), folder / undecodable]
    shown = explain_images(saved("joint"), odd, out=tmp_path, how=HOW)
    pictures = set(column(shown, "picture"))
    assert len({picture.casefold() for picture in pictures}) == len(odd) == 5
    assert all((tmp_path / picture).is_file() for picture in pictures)


# Explanation


def test_a_joint_model_removes_what_is_there(saved, folder: Path, tmp_path: Path) -> None:
    model, out, files = saved("joint"), tmp_path / "out", list_images([folder])
    answers = explain_images(model, files, out=out, how=HOW)
    before = predict_images(model, files, voting=VOTING)
    for line in before.lines:
        probabilities = dict(zip(DATA.labels.names, line[1:4], strict=True))
        present = {name for name, p in probabilities.items() if p >= 0.5}
        chosen = [row for row in answers.lines if row[0] == line[0]]
        assert {row[3] for row in chosen} == present or {max(probabilities, key=lambda name: probabilities[name])}
        assert [row[4] for row in chosen] == pytest.approx([probabilities[row[3]] for row in chosen], abs=1e-5)
    assert {path.name for path in out.iterdir()} == {"a.png", "a-2.png", "b.png", "c.png", "d.png"}
    for name in set(column(answers, "picture")):
        with Image.open(out / name) as picture:
            assert picture.format == "PNG" and picture.width > 600 and picture.height > 300
    for name in ("probability_control", "side_effect", "share_changed", "max_change"):
        assert all(0 <= value <= 1 for value in column(answers, name))
    assert all(0 <= place < 16 for name in ("max_change_x", "max_change_y") for place in column(answers, name))
    assert np.isnan(column(answers, "spread")).all(), "one noise draw has no spread"


def test_an_explanation_depends_on_neither_batch_nor_company(saved, folder: Path, tmp_path: Path) -> None:
    model, files, how = saved("joint"), list_images([folder]), Explanation(steps=2, noises=2)
    together = explain_images(model, files, out=tmp_path / "1", how=how, finding="mass", arrays=True)
    alone = explain_images(model, files[1:2], out=tmp_path / "2", how=how, finding="mass", arrays=True)
    assert set(column(together, "finding")) == {"mass"}
    assert column(together, "spread")[1] > 0
    maps = [dict(np.load(tmp_path / part / "b.npz"))["map"] for part in "12"]
    np.testing.assert_allclose(*maps, atol=1e-5)
    numbers = [0 if line is None else line for line in (together.lines[1][4:10], alone.lines[0][4:10])]
    np.testing.assert_allclose(*numbers, atol=1e-3)
    added = explain_images(model, files[1:2], out=tmp_path / "3", how=how, finding="mass", enforce=True)
    assert added.lines[0][5] != alone.lines[0][5]


def test_classes_of_a_diffusion_classifier_are_explained(saved, folder: Path, tmp_path: Path) -> None:
    answers = explain_images(saved("diffusion_classifier", CLASSES), list_images([folder]), out=tmp_path / "o", how=HOW)
    assert len(answers.lines) == 5, "one class each"
    assert all(line[4] >= 1 / 3 for line in answers.lines)


def test_a_classifier_is_explained_by_grad_cam(saved, folder: Path, tmp_path: Path) -> None:
    model, out = saved("supervised"), tmp_path / "out"
    answers = explain_images(model, list_images([folder]), out=out, how=HOW, finding="nodule", arrays=True)
    assert set(column(answers, "explainer")) == {"grad_cam"}
    assert set(column(answers, "probability_after")) == {None}
    assert dict(np.load(out / "c.npz"))["map"].shape == (1, 16, 16)
    answers.write(out / "explanations.csv")
    assert [line["picture"] for line in read(out / "explanations.csv")] == column(answers, "picture")
    with pytest.raises(
        ConfigError, match=r"cannot add a finding; these methods can: diffusion_classifier, guided_diffusion, joint$"
    ):
        explain_images(model, [], out=out, how=HOW, finding="nodule", enforce=True)


def test_what_cannot_be_explained_says_what_can(saved, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"RandomScores cannot explain an image; these methods can: .*supervised"):
        explain_images(saved("random"), [], out=tmp_path / "out", how=HOW)
    with pytest.raises(ConfigError, match="did you mean 'nodule'"):
        explain_images(saved("joint"), [], out=tmp_path / "out", how=HOW, finding="Nodules")
    with pytest.raises(ConfigError, match="say which with --finding"):
        explain_images(saved("joint"), [], out=tmp_path / "out", how=HOW, enforce=True)


# Generation


def test_samples_are_those_of_an_experiment_with_a_table(saved, tmp_path: Path) -> None:
    model, out, settings = saved("joint"), tmp_path / "out", Generation(images=5, steps=2, batch_size=2)
    answers = sample_images(model, out=out, settings=settings, seed=3)
    generate(model, out=tmp_path / "g.npz", picture=tmp_path / "g.png", seed=3, settings=settings)
    with np.load(out / "generated.npz") as ours, np.load(tmp_path / "g.npz") as theirs:
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs if key != "cost")
        images, seeds = ours["images"], ours["seeds"]
    assert column(answers, "asked") == ["", "nodule", "=effusion", "mass", ""]
    assert column(answers, "seed") == seeds.tolist()
    for name, image in zip(column(answers, "image"), images, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / name)), image[:, :, 0])
    said = load_model(model).predict(tensor(*(out / name for name in column(answers, "image")))).detach().numpy()
    np.testing.assert_allclose([line[2:5] for line in answers.lines], said, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Edema, mild", ["Edema, mild"]),
        ("nodule,cat", ["nodule", "cat"]),
        ('"Edema, mild",nodule', ["Edema, mild", "nodule"]),
        ('nodule , "Edema, mild"', ["nodule", "Edema, mild"]),
        ("a,b", ["a,b"]),  # one that the model knows is whole
        ("Edema, mild,nodule", ["Edema", "mild", "nodule"]),
    ],
)
def test_labels_of_a_command_line(text: str, labels: list[str]) -> None:
    assert split_labels(text, ["Edema, mild", "nodule", "cat", "a", "b", "a,b"]) == labels


def test_labels_that_are_no_list_are_refused() -> None:
    with pytest.raises(ConfigError, match="is no list of labels"):
        split_labels('"Edema, mild', ["nodule"])
    with pytest.raises(ConfigError, match=r"'Edema' is nothing .*a name with a comma in it stands in double quotes"):
        find_labels(["Edema", "mild"], ["Edema, mild", "nodule"])


def test_samples_of_some_labels(saved, tmp_path: Path) -> None:
    settings = Generation(images=5, steps=1)
    answers = sample_images(
        saved("diffusion_classifier", CLASSES), out=tmp_path / "out", settings=settings, labels=["frog", "cat"]
    )
    assert column(answers, "asked") == ["frog", "cat", "frog", "cat", "frog"]
    assert Image.open(tmp_path / "out" / column(answers, "image")[0]).mode == "RGB"
    with pytest.raises(ConfigError, match="did you mean 'frog'"):
        sample_images(saved("joint", CLASSES), out=tmp_path, settings=settings, labels=["frogs"])
    with pytest.raises(ConfigError, match="cannot draw images"):
        sample_images(saved("supervised"), out=tmp_path, settings=settings)
