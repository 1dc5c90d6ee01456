"""The search for settings: as much of it for every method, and no test image behind it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jointdiff.config import ConfigError, RunSpec
from jointdiff.data.store import open_store
from jointdiff.files import read_json, write_sums
from jointdiff.registry import methods
from jointdiff.report.trials import collect_trials
from jointdiff.training.loop import train
from jointdiff.training.tuning import choose_settings, declared_settings, trial_settings, try_settings, tuned
from tests.tiny import tiny_phantoms, tiny_run

DECLARED = {"learning_rate": 0.03, "weight": 10.0}


def test_the_first_trial_is_what_was_declared():
    assert trial_settings(DECLARED, trial=0, seed=3, spread=4.0) == DECLARED


def test_factors_are_log_uniform_within_the_spread():
    tried = [trial_settings(DECLARED, trial=trial, seed=0, spread=4.0) for trial in range(1, 401)]
    for name, value in DECLARED.items():
        shares = np.array([math.log(settings[name] / value, 4.0) for settings in tried])
        assert (np.abs(shares) <= 1).all()
        # A uniform number from -1 to 1 has mean 0 and variance 1/3.
        assert abs(shares.mean()) < 4 * math.sqrt(1 / 3 / 400)
        assert shares.var() == pytest.approx(1 / 3, rel=0.15)
    assert np.corrcoef([[math.log(settings[name]) for settings in tried] for name in DECLARED])[0, 1] < 0.2


def test_a_trial_is_the_same_whatever_was_tried_before_and_for_every_method():
    def factors(declared: dict[str, float], trials: list[int], seed: int = 0) -> dict[int, float]:
        return {
            trial: trial_settings(declared, trial=trial, seed=seed, spread=4.0)["learning_rate"]
            / declared["learning_rate"]
            for trial in trials
        }

    forwards = factors(DECLARED, [1, 2, 3])
    assert factors(DECLARED, [3, 2, 1]) == forwards
    assert factors({"learning_rate": 0.03}, [2]) == {2: forwards[2]}, "with nothing else to tune"
    assert factors({"learning_rate": 1e-4}, [2])[2] == pytest.approx(forwards[2])
    assert factors(DECLARED, [1, 2, 3], seed=1) != forwards


def test_every_method_that_trains_tunes_its_learning_rate():
    tunable = {name: declared_settings(tiny_run(name)) for name in methods()}
    assert {name for name, declared in tunable.items() if "learning_rate" not in declared} == {"random", "class_prior"}
    assert tunable["fixmatch"].keys() == {"learning_rate", "weight"}
    assert tunable["joint"].keys() == {"learning_rate", "classification_weight"}
    run = tiny_run("fixmatch", settings={"weight": 3.0})
    assert declared_settings(run)["weight"] == 3.0, "what the entry says comes before the default"


def test_a_wrong_setting_is_one_clear_message():
    with pytest.raises(ConfigError, match=r"methods\.fixmatch\.settings: .*\n?.*wight"):
        declared_settings(tiny_run("fixmatch", settings={"wight": 3.0}))


# --- Choosing ---------------------------------------------------------------------------------------------------------


def write_trial(folder: Path, trial: int, score: float | None) -> Path:
    path = folder / f"trial-{trial}.json"
    record = {
        "dataset": "phantom", "labels": "20", "method": "fixmatch", "seed": 0, "trial": trial,
        "settings": {"learning_rate": 0.1 * (trial + 1)}, "best_validation": score,
        "failed": None if score is not None else "loss not finite", "cost": {"steps": 9, "best_step": 6},
    }  # fmt: skip
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [([0.6, 0.7, 0.5], 1), ([0.7, 0.7, 0.7], 0), ([0.6, 0.7, 0.7], 1), ([None, 0.4, 0.3], 1), ([0.6, None, None], 0),
     ([0.1 + 0.2, 0.3, 0.0], 0), ([0.3, 0.1 + 0.2, 0.0], 0)],
)  # fmt: skip
def test_the_best_validated_trial_is_chosen_and_the_earlier_of_equals(tmp_path, scores, chosen):
    paths = [write_trial(tmp_path, trial, score) for trial, score in enumerate(scores)]
    choose_settings(paths[::-1], tmp_path / "tuning.json")
    choice = read_json(tmp_path / "tuning.json")
    assert choice["chosen"] == chosen
    assert [trial["trial"] for trial in choice["trials"]] == [0, 1, 2]

    run = tiny_run("fixmatch")
    after, about = tuned(run, choice)
    assert about == {"trials": 3, "chosen": chosen}
    if chosen:
        assert after.settings == {**run.settings, "learning_rate": pytest.approx(0.1 * (chosen + 1))}
        assert after.digest != run.digest
    else:
        assert after == run, "the declared settings bear the name that they have without a search"


def test_no_score_at_all_is_one_clear_message(tmp_path):
    paths = [write_trial(tmp_path, trial, None) for trial in (0, 1)]
    with pytest.raises(ValueError, match=r"no trial of fixmatch on phantom, labels 20, seed 0 .* loss not finite"):
        choose_settings(paths, tmp_path / "tuning.json")


def test_all_trials_become_one_table(tmp_path):
    choices = []
    for name, scores in {"a": [0.6, 0.7], "b": [0.9, None]}.items():
        (tmp_path / name).mkdir()
        paths = [write_trial(tmp_path / name, trial, score) for trial, score in enumerate(scores)]
        choices.append(tmp_path / name / "tuning.json")
        choose_settings(paths, choices[-1])
    other = read_json(choices[1])
    for part in (other, *other["trials"]):
        part.update(method="joint", settings={"learning_rate": 1.0, "classification_weight": 2.0})
    choices[1].write_text(json.dumps(other))
    collect_trials(choices, tmp_path / "tuning.csv")
    with (tmp_path / "tuning.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    shown = [
        [row[key] for key in ("method", "trial", "classification_weight", "best_validation", "chosen")] for row in rows
    ]
    assert shown == [
        ["fixmatch", "0", "", "0.6", "0"],
        ["fixmatch", "1", "", "0.7", "1"],
        ["joint", "0", "2.0", "0.9", "1"],
        ["joint", "1", "2.0", "", "0"],
    ]


# --- With trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path) -> dict[str, Path]:
    return tiny_phantoms(tmp_path / "data", labelled=12, validation=12, unlabelled=12, test=12)


def quick(method: str = "supervised", **training: Any) -> RunSpec:
    return tiny_run(method, **{"steps": 6, "validate_every": 2, "log_every": 2, **training})


def search(run: RunSpec, folder: Path, data: dict[str, Path], *, trials: int = 3, spread: float = 4.0) -> Any:
    for trial in reversed(range(trials)):
        try_settings(
            run, trial=trial, spread=spread, **data, out=folder / f"{trial}.json", metrics=folder / f"{trial}.jsonl",
            state=folder / "state",
        )  # fmt: skip
    choose_settings([folder / f"{trial}.json" for trial in range(trials)], folder / "tuning.json")
    return read_json(folder / "tuning.json")


def relabel(data: dict[str, Path], role: str) -> None:
    """Give the images of a role the opposite of their labels."""
    store = open_store(data["store"])
    rows = store.split_rows(data["split"])[role]
    table = pd.read_parquet(data["store"] / "samples.parquet")
    columns = [f"label:{name}" for name in store.info.labels.names]
    table.loc[rows, columns] = 1.0 - table.loc[rows, columns]
    table.to_parquet(data["store"] / "samples.parquet")
    write_sums(data["store"])
    assert (open_store(data["store"]).labels[rows] == 1.0 - store.labels[rows]).all()


def told(choice: Any) -> list[Any]:
    return [
        choice["chosen"],
        *((trial["settings"], trial["best_validation"], trial["cost"]["best_step"]) for trial in choice["trials"]),
    ]


@pytest.mark.parametrize("method", ["supervised", "joint"])
def test_labels_of_test_images_change_no_trial(data, tmp_path, method):
    run = quick(method)
    before = told(search(run, tmp_path / "before", data))
    relabel(data, "test")
    assert told(search(run, tmp_path / "after", data)) == before
    relabel(data, "validation")  # which shows that labels could have made a difference
    assert told(search(run, tmp_path / "other", data)) != before


def test_only_numbers_are_left_of_a_trial_and_the_chosen_one_can_be_trained(data, tmp_path):
    run = quick()
    choice = search(run, tmp_path / "search", data, trials=2)
    names = {path.name for path in (tmp_path / "search").rglob("*") if path.is_file()}
    assert names == {"0.json", "0.jsonl", "1.json", "1.jsonl", "tuning.json"}
    choice["chosen"], choice["settings"] = 1, choice["trials"][1]["settings"]
    after, about = tuned(run, choice)
    train(after, **data, out=tmp_path / "cell", state=tmp_path / "state", tuning=about)
    record = read_json(tmp_path / "cell/run.json")
    assert record["tuning"] == {"trials": 2, "chosen": 1}
    assert record["settings"]["learning_rate"] == choice["trials"][1]["settings"]["learning_rate"]
    assert record["run_id"] == choice["trials"][1]["run_id"]
    # A trial of the same length is the training of its settings.
    assert (tmp_path / "cell/metrics.jsonl").read_text() == (tmp_path / "search/1.jsonl").read_text()


def test_a_trial_that_diverges_is_no_end_of_the_search(data, tmp_path):
    run = tiny_run("supervised", settings={"learning_rate": 1e-3}, steps=40, log_every=1, validate_every=2)
    run = run.model_copy(update={"training": run.training.model_copy(update={"clip_norm": 1e9})})
    choice = search(run, tmp_path / "search", data, trials=3, spread=1e30)
    scores = {trial["trial"]: trial["best_validation"] for trial in choice["trials"]}
    failed = [trial for trial in choice["trials"] if trial["failed"]]
    assert scores[0] is not None
    assert failed and all("not finite" in trial["failed"] and scores[trial["trial"]] is None for trial in failed)
    assert not list((tmp_path / "search/state").iterdir())
