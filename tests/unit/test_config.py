"""Configurations: what is accepted, and the one message that each mistake ends in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jointdiff import declared
from jointdiff.config import ConfigError, RunSpec, Training, load_experiment, parse_experiment
from jointdiff.declared import SCHEMA
from jointdiff.schema import config_schema
from jointdiff.values import fitted

ROOT = Path(__file__).parents[2]
CONFIGS = sorted([*ROOT.glob("config/*.yaml"), *ROOT.glob("config/experiments/*.yaml")])


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "seeds": [0],
        "datasets": {"phantom": {"size": 32, "labels": [50]}},
        "methods": {"supervised": {}},
        **changes,
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert load_experiment(path).cells()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_configuration_is_commented(path: Path) -> None:
    def keys(file: Path, *, commented: bool) -> set[str]:
        found = re.findall(r"^ *(\w+):(.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return {key for key, rest in found if "#" in rest or not commented}

    experiment = load_experiment(path)
    names = {
        *experiment.datasets,
        *experiment.methods,
        *experiment.autoencoders,
    }  # explained by their own lines, or by being a module's name
    explained = keys(path, commented=True) | keys(ROOT / "config" / "config.yaml", commented=True)
    assert keys(path, commented=False) - names - explained == set()


def test_a_package_without_its_schema_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "SCHEMA", tmp_path / "schema.json")
    declared.declared.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"schema\.json is missing: install jointdiff-bench anew"):
            declared.abilities("diffusion_classifier")
    finally:
        declared.declared.cache_clear()


def test_the_schema_file_is_in_step_with_the_types() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(json.dumps(config_schema())), (
        "run `uv run jointdiff schema`"
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_what_the_types_accept(path: Path) -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sedes": [0]}, ["sedes", "did you mean 'seeds'"]),
        ({"seeds": ["a"]}, ["seeds.0", "valid integer", "'a'"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"datasets": {"phantm": {"size": 32, "labels": [1]}}}, ["datasets.phantm", "unknown data set", "'phantom'"]),
        (
            {"datasets": {"phantom": {"size": 32, "labels": [1], "lables": [1]}}},
            ["datasets.phantom.lables", "did you mean 'labels'"],
        ),
        ({"datasets": {"phantom": {"size": 32, "labels": ["some"]}}}, ["labels.0", "'some'", "fraction"]),
        (
            {"datasets": {"phantom": {"size": 32, "labels": [1], "options": {"patient": 3}}}},
            ["datasets.phantom.options.patient", "did you mean 'patients'"],
        ),
        (
            {"datasets": {"phantom": {"size": 32, "labels": [1], "training": {"step": 3}}}},
            ["datasets.phantom.training.step", "did you mean 'steps'"],
        ),
        ({"methods": {"fixmach": {}}}, ["methods.fixmach", "unknown method", "did you mean 'fixmatch'"]),
        ({"methods": {"mine": {"method": "fixmach"}}}, ["methods.mine.method", "did you mean 'fixmatch'"]),
        (
            {"methods": {"fixmatch": {"settings": {"treshold": 0.9}}}},
            ["methods.fixmatch.settings.treshold", "did you mean 'threshold'"],
        ),
        ({"methods": {"fixmatch": {"settings": {"threshold": "x"}}}}, ["methods.fixmatch.settings.threshold", "'x'"]),
        ({"tuning": {"trials": 0}}, ["tuning.trials", "0"]),
        ({"tuning": {"spread": 1.0}}, ["tuning.spread", "greater than 1"]),
        ({"tuning": {"training": {"step": 3}}}, ["tuning.training.step", "did you mean 'steps'"]),
        ({"training": {"compute": 0}}, ["training.compute", "greater than 0"]),
        ({"methods": {"supervised": {"training": {"steps": -1}}}}, ["methods.supervised.training.steps", "-1"]),
        ({"methods": {"fixmatch": {"generate": True}, "f": {"method": "supervised", "labels": "all"}},
          "evaluation": {"extractor": "f"}}, ["methods.fixmatch.generate", "cannot draw", "joint"]),
        ({"methods": {"random": {"explain": ["grad_cam"]}}}, ["methods.random.explain", "cannot explain by grad_cam"]),
        ({"methods": {"random": {"labels": [40]}}}, ["methods.random.labels", "'40'", "did you mean '50'"]),
        ({"methods": {"joint": {"generate": True}}}, ["evaluation.extractor", "fully_supervised", "labels: all"]),
        ({"methods": {"not a name": {"method": "joint"}}}, ["methods", "'not a name'", "letters"]),
        ({"methods": {"supervised": {"start": "simcrl"}, "simclr": {}}},
         ["methods.supervised.start", "'simcrl' is no key of methods", "did you mean 'simclr'"]),
        ({"methods": {"supervised": {"start": "supervised"}}},
         ["methods.supervised.start", "supervised -> supervised is a circle"]),
        ({"methods": {"supervised": {"start": "simclr"}, "simclr": {"start": "fixmatch"},
                      "fixmatch": {"start": "simclr"}}},
         ["methods.fixmatch.start", "supervised -> simclr -> fixmatch -> simclr is a circle"]),
        ({"datasets": {"phantom": {"size": 32, "labels": [50, 100]}},
          "methods": {"supervised": {"start": "simclr"}, "simclr": {"labels": [100]}}},
         ["methods.supervised.start", "'simclr' is not trained with the label budget '50' of phantom", "`labels`"]),
        ({"methods": {"supervised": {"synthetic": "jont"}, "joint": {}}},
         ["methods.supervised.synthetic", "'jont' is no key of methods", "did you mean 'joint'"]),
        ({"methods": {"supervised": {"synthetic": "joint"}, "joint": {}}},
         ["methods.supervised.synthetic", "'joint' draws no images", "`generate: true`"]),
        ({"methods": {"supervised": {"real_labels": False}}},
         ["methods.supervised.real_labels", "without `synthetic`"]),
        ({"methods": {"joint": {"generate": True, "synthetic": "joint"}}},
         ["methods.joint.synthetic", "joint -> joint is a circle"]),
        ({"methods": {"joint": {"generate": True, "labels": "all"}, "supervised": {"synthetic": "joint"},
                      "fully_supervised": {"method": "supervised", "labels": "all"}}},
         ["methods.supervised.synthetic", "'joint' is not trained with the label budget", "handed on"]),
        ({"methods": {"supervised": {"start": "simclr", "labels": "all"}, "simclr": {}}},
         ["methods.supervised.start", "'simclr' is not trained with the label budget 'all' of phantom"]),
        ({"datasets": {"phantom": {"size": 32, "labels": ["25 per class"]}},
          "methods": {"supervised": {"start": "simclr"}, "simclr": {"labels": "all"}}},
         ["methods.supervised.start", "validate the label budget '25-per-class' of phantom", "`labels: grid`"]),
        ({"methods": {"fixmatch": {"start": "supervised"}, "supervised": {"labels": "all"}}},
         ["methods.fixmatch.start", "'supervised' is trained with every label", "`labels: grid`", "simclr"]),
        ({"datasets": {"phantom": {"size": 32, "labels": [50, "all"]}},
          "methods": {"fixmatch": {"start": "simclr"}, "simclr": {"labels": "all", "start": "supervised"},
                      "supervised": {}}},
         ["methods.fixmatch.start", "'supervised' is trained with every label"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_with_key_value_and_remedy(changes: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(config(**changes))
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment({key: value for key, value in config(trainin={}).items() if key != "seeds"})
    assert str(caught.value).splitlines()[0].startswith("seeds: this key is required")
    assert "did you mean 'training'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such"), ("a: [", "not valid YAML"), ("- 1", "expected keys"), ("name: 3", "name")]
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)


def test_snakemake_keeps_its_own_key() -> None:
    assert parse_experiment(config(pathvars={"results": "elsewhere"})).name == "test"


def test_a_variant_may_be_trained_with_some_of_the_budgets() -> None:
    """For methods that are slow; the others keep the whole grid."""
    experiment = parse_experiment(
        config(
            datasets={"phantom": {"size": 32, "labels": [50, "25 per class"]}},
            methods={"supervised": {"labels": ["25 per class"]}, "random": {}},
        )
    )
    budgets = [(method, labels) for _, labels, method, _ in experiment.cells()]
    assert set(budgets) == {("supervised", "25-per-class"), ("random", "50"), ("random", "25-per-class")}


def test_cells_are_the_grid_and_full_labels_are_one_budget() -> None:
    experiment = parse_experiment(
        config(
            seeds=[0, 1],
            datasets={"phantom": {"size": 32, "labels": [50, "25 per class", 0.1]}},
            methods={"supervised": {}, "upper": {"method": "supervised", "labels": "all"}},
        )
    )
    assert len(experiment.cells()) == 2 * 3 + 2
    assert ("phantom", "25-per-class", "supervised", 1) in experiment.cells()
    assert ("phantom", "all", "upper", 0) in experiment.cells()


def test_the_nearest_override_of_training_wins() -> None:
    experiment = parse_experiment(
        config(
            training={"steps": 1, "batch_size": 2, "log_every": 3},
            datasets={"phantom": {"size": 32, "labels": [50], "training": {"batch_size": 4, "log_every": 5}}},
            methods={"supervised": {"training": {"log_every": 6}}},
        )
    )
    training = experiment.run("phantom", "50", "supervised", 0).training
    assert (training.steps, training.batch_size, training.log_every) == (1, 4, 6)


def spec(**changes: Any) -> RunSpec:
    known: dict[str, Any] = {
        "experiment": "e", "dataset": "phantom", "size": 32, "labels": "50", "variant": "v", "method": "joint",
        "seed": 0, "settings": {}, "training": Training(),
    }  # fmt: skip
    return RunSpec(**{**known, **changes})


def test_the_nearest_of_steps_and_compute_is_followed() -> None:
    experiment = parse_experiment(
        config(
            training={"steps": 1, "compute": 10.0},
            datasets={
                "phantom": {"size": 32, "labels": [50]},
                "mine": {"source": "phantom", "size": 32, "labels": [50], "training": {"steps": 2}},
            },
            methods={
                "supervised": {},
                "fixmatch": {"training": {"compute": 30.0}},
                "short": {"base": "fixmatch", "training": {"steps": 4}},
            },
        )
    )

    def plan(dataset: str, method: str) -> tuple[int, float | None]:
        training = experiment.run(dataset, "50", method, 0).training
        return training.steps, training.compute

    assert plan("phantom", "supervised") == (1, 10.0)
    assert plan("mine", "supervised") == (2, None)
    assert plan("mine", "fixmatch") == (2, 30.0)
    assert plan("phantom", "short") == (4, None)
    assert experiment.changes()["short"]["changes"] == {"training.steps": [1, 4], "training.compute": [30.0, None]}


def test_every_method_that_trains_is_searched_alike_unless_its_entry_says_no() -> None:
    methods = {"supervised": {}, "joint": {}, "fixed": {"base": "joint", "tune": False}, "random": {}}
    assert not any(map(parse_experiment(config(methods=methods)).searched, methods))
    tuning = {"trials": 3, "training": {"steps": 5, "batch_size": 8}}
    experiment = parse_experiment(config(methods=methods, tuning=tuning, training={"compute": 7.0}))
    assert [name for name in methods if experiment.searched(name)] == ["supervised", "joint"]
    run, trial = (of("phantom", "50", "joint", 0) for of in (experiment.run, experiment.trial))
    assert (run.training.compute, trial.training.compute, trial.training.steps) == (7.0, None, 5)
    assert trial.training.batch_size == 8
    assert trial.model_copy(update={"training": run.training}) == run
    assert experiment.changes()["fixed"]["changes"] == {"tune": [True, False]}


def test_a_digest_covers_what_changes_the_weights_and_nothing_else() -> None:
    assert spec().digest == spec(experiment="other").digest
    assert spec().digest == spec(training=Training(device="cpu", log_every=1, checkpoint_seconds=1)).digest
    changed = [{"size": 16}, {"labels": "51"}, {"seed": 1}, {"settings": {"a": 1}}, {"options": {"patients": 1}}]
    changed += [{"start": "a"}, {"start": "b"}, {"synthetic": "a"}, {"real_labels": False}]
    digests = {spec(**change).digest for change in [{}, *changed, {"training": Training(steps=1)}, {"test": 0.5}]}
    assert len(digests) == len(changed) + 3


def started(**changes: Any) -> dict[str, Any]:
    return config(
        datasets={"phantom": {"size": 32, "labels": [50, 0.1]}},
        methods={
            "simclr": {"labels": "all"},
            "fixmatch": {},
            "fixmatch_simclr": {"base": "fixmatch", "start": "simclr"},
            "again": {"method": "supervised", "start": "fixmatch_simclr", "labels": [50]},
            **changes,
        },
    )


def test_a_variant_starts_from_the_same_cell_or_from_that_with_every_label() -> None:
    experiment = parse_experiment(started())
    assert experiment.start_of("50", "fixmatch_simclr") == ("all", "simclr")
    assert experiment.start_of("50", "again") == ("50", "fixmatch_simclr")
    assert experiment.start_of("50", "fixmatch") is None
    runs = {name: experiment.run("phantom", "50", name, 0) for name in experiment.methods}
    assert runs["fixmatch"].start is None
    assert runs["fixmatch_simclr"].start == experiment.run("phantom", "all", "simclr", 0).digest
    assert runs["again"].start == runs["fixmatch_simclr"].digest
    assert experiment.changes()["fixmatch_simclr"] == {"base": "fixmatch", "changes": {"start": [None, "simclr"]}}
    # What the first of a chain is trained with reaches the last.
    other = parse_experiment(started(simclr={"labels": "all", "settings": {"temperature": 0.1}}))
    for name in ("fixmatch_simclr", "again"):
        assert other.run("phantom", "50", name, 0).digest != runs[name].digest
    assert other.run("phantom", "50", "fixmatch", 0).digest == runs["fixmatch"].digest


def test_labels_are_handed_on_among_equals_alone() -> None:
    """Of the same budget, or where every label is there anyway; or by an encoder that has seen none."""
    parse_experiment(config(methods={"supervised": {}, "fixmatch": {"start": "supervised"}}))
    every = {"supervised": {"labels": "all"}, "upper": {"method": "fixmatch", "start": "supervised", "labels": "all"}}
    parse_experiment(config(methods=every))
    parse_experiment(config(methods={"simclr": {"labels": "all"}, "fixmatch": {"start": "simclr"}}))


def test_a_variant_says_what_it_changes_of_its_base() -> None:
    experiment = parse_experiment(
        config(
            methods={
                "joint": {"generate": True, "settings": {"width": 16, "pooling": "both"}},
                "joint_max": {"base": "joint", "generate": False, "settings": {"pooling": "max", "width": 16}},
                "joint_long": {
                    "base": "joint_max",
                    "training": {"steps": 9, "batch_size": 32},
                    "settings": {"ema": 0.9},
                },
                "mediffusion": {"base": "joint", "autoencoder": "kl", "explanation": {"guidance": 1.0}},
                "judge": {"method": "supervised", "labels": "all"},
            },
            autoencoders={"kl": {}},
            evaluation={"extractor": "judge"},
        )
    )
    changes = experiment.changes()
    assert changes == {
        "joint_max": {"base": "joint", "changes": {"settings.pooling": ["both", "max"]}},
        "joint_long": {
            "base": "joint_max",
            "changes": {"settings.ema": ["default", 0.9], "training.steps": [500, 9]},
        },
        "mediffusion": {
            "base": "joint",
            "changes": {"autoencoder": [None, "kl"], "explanation.guidance": [2.0, 1.0]},
        },
    }
    again = parse_experiment(experiment.model_dump(mode="json"))  # as Snakemake hands it on
    assert again.changes() == changes and parse_experiment(config()).changes() == {}


@given(st.integers(1, 10**6))
def test_a_budget_reads_the_same_however_it_is_written(count: int) -> None:
    written = [count, str(count), f" {count} "]
    data = [parse_experiment(config(datasets={"phantom": {"size": 8, "labels": [w]}})).datasets for w in written]
    assert {d["phantom"].labels[0] for d in data} == {str(count)}


def test_more_reverse_steps_than_noise_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"explanation\.steps: 6 reverse steps do not fit below noise_level 5"):
        parse_experiment(config(explanation={"steps": 6, "noise_level": 5}))


def test_drawn_images_are_part_of_what_a_training_depends_on() -> None:
    drawing: dict[str, Any] = {"method": "joint", "generate": True}

    def run(generator: dict[str, Any], **changes: Any) -> RunSpec:
        judge = {"method": "supervised", "labels": "all"}
        methods = {"drawing": generator, "supervised": {"synthetic": "drawing", **changes}, "fully_supervised": judge}
        return parse_experiment(config(methods=methods)).run("phantom", "50", "supervised", 0)

    same, other = run(drawing), run({**drawing, "generation": {"guidance": 4.0}})
    assert same.synthetic and same.digest == run(drawing).digest
    assert same.digest == run({**drawing, "generation": {"batch_size": 7}}).digest, "which changes no image"
    alone = run(drawing, real_labels=False)
    assert len({same.digest, other.digest, alone.digest}) == 3


def own(options: str = "{}", *, settings: str = "{}", more: str = "") -> str:
    return (
        "name: t\nseeds: [0]\ndatasets:\n  scans:\n    source: own\n    size: 16\n    labels: [20]\n"
        f"    options: {options}\nmethods:\n  supervised:\n    settings: {settings}\n{more}"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (own(more="  supervised: {}\n"), r"the key 'supervised' stands twice, in line 10 and in line 12"),
        (own("{group: a, group: b}"), r"the key 'group' stands twice, in line 8 and in line 8"),
        (own(settings="{depth: 010}"), r"line 11: YAML reads 010 as 8; write the number without zeros in front"),
        (own(more="training: {steps: 0500}\n"), r"line 12: YAML reads 0500 as 320"),
        (own("{classes: [007, 008]}"), r"line 8: YAML reads 007 as 7; .* or a name in quotes"),
        (own("{group: 1:30}"), r"line 8: YAML reads 1:30 as 90"),
        (own("{classes: [no, yes]}"), r"scans\.options\.classes: YAML reads a value here as false, .*quotes"),
        (own("{labels: [on]}"), r"options\.labels: YAML reads a value here as true, where text is wanted; put it in"),
        (own("{group: 2024-01-01}"), r"options\.group: YAML reads a value here as 2024-01-01, where text is wanted"),
        (own("{group: 1.0}"), r"options\.group: YAML reads a value here as 1\.0, where text is wanted"),
        (own("{classes: [1.50]}"), r"options\.classes: YAML reads a value here as 1\.5, where text is wanted"),
        (own("{classes: [null, a]}"), r"options\.classes: YAML reads a value here as nothing"),
        (own("{group: }"), r"options\.group: YAML reads a value here as nothing, where text is wanted"),
        (own("{horizontal_flip: maybe}"), r"options\.horizontal_flip: 'maybe' is no bool"),
        (own(r'{path: "C:\data\scans"}'), r"not valid YAML: .*escape.*; write a path with backslashes in single"),
        (own("\n\t{}"), r"not valid YAML: .*line 9"),
        (own().replace("[0]", "[no, yes]"), r"seeds: YAML reads a value here as false"),
        (own().replace("name: t", "name: 2024"), r"name: .*found 2024; put it in quotes"),
        (own().replace("name: t", "name: off"), r"name: YAML reads a value here as false"),
        (own().replace("  scans:", "  no:"), r"found False; put it in quotes"),
        (own(more="evaluation: {bootstrap: yes}\n"), r"evaluation\.bootstrap: YAML reads a value here as true"),
        (own(settings="{learning_rate: small}"), r"settings\.learning_rate: 'small' is not of type 'number'"),
        (own(settings="{learning_rate: nan}"), r"settings\.learning_rate: 'nan' is not of type 'number'"),
        (own(settings="{depth: 1e1}"), r"settings\.depth: '1e1' is not of type 'integer'"),
        (own("!!python/name:os.system {}"), r"could not determine a constructor"),
    ],
)  # fmt: skip
def test_what_yaml_would_misread_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        load_experiment(tmp_path / "mine.yaml")
    assert str(tmp_path / "mine.yaml") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("options", "read"),
    [
        ("{classes: [0, 1]}", {"classes": ["0", "1"]}),
        ("{labels: fracture}", {"labels": ["fracture"]}),
        ("{labels: 2024, group: 7}", {"labels": ["2024"], "group": "7"}),
        ("{classes: ['no', '007', Höhle]}", {"classes": ["no", "007", "Höhle"]}),
        ("{channels: '3', horizontal_flip: 'yes', vertical_flip: on}",
         {"channels": 3, "horizontal_flip": True, "vertical_flip": True}),
    ],
)  # fmt: skip
def test_what_yaml_reads_as_something_else_is_what_was_meant(
    tmp_path: Path, options: str, read: dict[str, Any], encoding: str
) -> None:
    written = own(options, settings="{learning_rate: 1e-3, depth: '10'}", more="training: {clip_norm: 1.e-1}\n")
    (tmp_path / "mine.yaml").write_text(written.replace("\n", "\r\n"), encoding=encoding)
    experiment = load_experiment(tmp_path / "mine.yaml")
    assert experiment.datasets["scans"].options == read
    assert experiment.methods["supervised"].settings == {"learning_rate": 0.001, "depth": 10}
    assert experiment.training.clip_norm == 0.1
    typed = load_experiment(tmp_path / "mine.yaml").run("scans", "20", "supervised", 0)
    (tmp_path / "mine.yaml").write_text(written.replace("1e-3", "0.001").replace("'10'", "10"))
    assert load_experiment(tmp_path / "mine.yaml").run("scans", "20", "supervised", 0).digest == typed.digest


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_of_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.yaml").write_text(own("{group: Höhle}"), encoding=encoding)
    with pytest.raises(ConfigError, match=r"mine\.yaml is no UTF-8, in which Snakemake reads it; save it as UTF-8"):
        load_experiment(tmp_path / "mine.yaml")


def test_a_key_of_an_anchor_may_be_said_anew(tmp_path: Path) -> None:
    shared = "  a: &a {method: supervised, settings: &s {depth: 10}}\n  b: {<<: *a, settings: {<<: *s, depth: 16}}\n"
    (tmp_path / "mine.yaml").write_text(own(more=shared))
    assert load_experiment(tmp_path / "mine.yaml").methods["b"].settings == {"depth": 16}


@given(st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, allow_nan=False))
def test_a_number_is_the_same_as_text(whole: int, real: float) -> None:
    assert fitted(str(whole), ["integer"]) == whole
    assert fitted(f"{real:e}", ["number"]) == float(f"{real:e}")
    assert fitted(repr(real), ["number"]) == real
    assert fitted(str(whole), ["string"]) == str(whole)


def test_a_method_that_the_schema_does_not_know_is_asked_itself(monkeypatch):
    """A method of the user's own votes and draws by the same rules as a built-in one."""
    known = {name: declared.abilities(name) for name in ("diffusion_classifier", "joint", "simclr")}
    monkeypatch.setattr(declared, "declared_methods", dict)
    declared.abilities.cache_clear()
    assert {name: declared.abilities(name) for name in known} == known
    declared.abilities.cache_clear()
