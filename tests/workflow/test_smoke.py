"""The whole grid, tiny, from one command: what it leaves behind, and what runs again after which change."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jointdiff.questions import QUESTIONS, numbered
from tests.conftest import ROOT, require
from tests.workflow.flow import SMOKE, command, environment, small, snakemake

pytestmark = pytest.mark.workflow

MEASURED = re.compile(r"ms_per_|seconds|images_per_second|peak_memory")  # what no two runs share


def jobs(said: str) -> dict[str, int]:
    """Read the job counts of a dry run."""
    table = said.partition("Job stats:")[2].partition("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_leaves_behind_all_that_the_readme_promises(tree: Path) -> None:
    results = tree / "results" / "smoke"
    found = rows(results / "scores.csv")
    cells = {(row["labels"], row["method"]) for row in found}
    few = ["joint", "mediffusion", "diffusion_classifier", "supervised", "fixmatch", "mean_teacher", "random"]
    few.append("supervised_synthetic")
    assert cells == {("40", method) for method in few} | {("all", "fully_supervised")}
    assert {"auroc", "frechet_distance", "fid", "change_ratio", "pointing", "train_seconds"} <= {
        row["metric"] for row in found
    }
    for table in (
        "classification",
        "systems",
        "votes",
        "ablation",
        "joint",
        "localisation",
        "counterfactual",
        "cost",
        "images",
        "usefulness",
        "ranks",
        "trust",
    ):
        assert (results / "tables" / f"{table}.tex").stat().st_size
        assert (results / "tables" / f"{table}.csv").stat().st_size
        assert (results / "tables" / f"{table}.json").stat().st_size
    for figure in ("auroc", "ranks", "votes", "risk", "change", "loss", "reliability"):
        assert (results / "figures" / f"{figure}.png").stat().st_size
    cell = results / "phantom" / "labels-40" / "joint" / "seed-0"
    for name in (
        "generated.png",
        "nearest.png",
        "explanations.png",
        "metrics.jsonl",
        "model/config.json",
        "model/README.md",
    ):
        assert (cell / name).stat().st_size
    assert (cell.parents[1] / "diffusion_classifier" / "seed-0" / "votes.parquet").stat().st_size
    for name in ("model/diffusion_pytorch_model.safetensors", "latents.npy", "reconstructions.png"):
        assert (results / "phantom" / "autoencoders" / "kl" / "seed-0" / name).stat().st_size
    # The map of outputs, with the names of this experiment.
    readme = (
        (ROOT / "README.md").read_text(encoding="utf-8").replace("default", "smoke").replace("labels-200", "labels-40")
    )
    promised = re.findall(r"^\| `((?:results|resources|logs)/[^`]*)`", readme, flags=re.MULTILINE)
    assert len(promised) == 11
    assert [name for name in promised if not (tree / name).exists() and not name.endswith("paper.pdf")] == []
    assert not list(results.rglob("*.pkl"))
    assert not list((tree / "state").glob("*/*"))


def test_the_report_answers_questions(tree: Path) -> None:
    page = (tree / "results" / "smoke" / "report.html").read_text(encoding="utf-8")
    for question in QUESTIONS:
        assert numbered(question) in page


@pytest.mark.tex
def test_the_paper_is_compiled(tree: Path) -> None:
    require("pdflatex")
    paper = tree / "results" / "smoke" / "paper.pdf"
    text = subprocess.run([require("pdftotext"), paper, "-"], check=True, capture_output=True, text=True).stdout
    assert "Fully supervised" in text


def test_mlflow_shows_every_run(tree: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tree / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 11, "tables and figures, nine cells and an autoencoder"
    assert len(client.search_logged_models([experiment.experiment_id])) == 9
    (joint,) = [run for run in runs if run.data.tags.get("method") == "joint"]
    assert {"train/loss", "validation/auroc", "test/auroc", "system/max_rss"} <= set(joint.data.metrics)
    assert {file.path for file in client.list_artifacts(joint.info.run_id)} >= {"generated.png", "explanations.png"}
    shown = [file.path for file in client.list_artifacts(joint.info.run_id, "images")]
    steps = {found[1] for path in shown if (found := re.search(r"training.step.(\d+)", path))}
    assert steps == {"3", "6"}, "images of each validation"


def test_a_logged_model_is_read_back(tree: Path) -> None:
    script = """
import sys, mlflow, numpy as np
client = mlflow.MlflowClient(sys.argv[1])
(model,) = [m for m in client.search_logged_models(["1"]) if m.name.startswith("joint")]
mlflow.set_tracking_uri(sys.argv[1])
answer = mlflow.pyfunc.load_model(model.model_uri).predict(np.zeros((2, 1, 16, 16), np.float32))
assert answer.shape == (2, 3) and (0 <= answer).all() and (answer <= 1).all()
"""
    uri = f"sqlite:///{tree / 'results' / 'mlflow.db'}"
    subprocess.run([sys.executable, "-c", script, uri], check=True, env=environment(tree))


def test_a_second_run_does_nothing(tree: Path) -> None:
    assert "Nothing to be done" in snakemake(tree, "--configfile", SMOKE)


def test_a_copied_project_has_nothing_to_do_and_knows_no_former_place(tree: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tree, tmp_path / "a copy")
    assert "Nothing to be done" in snakemake(copy, "-n", "--configfile", SMOKE)
    files = [path for path in (copy / "results").rglob("*") if path.is_file()]
    assert [path for path in files if str(tree).encode() in path.read_bytes()] == []


@pytest.fixture
def edited(tree: Path) -> Any:
    """Edit a file of the tree for the length of a test."""
    kept: dict[Path, tuple[str, os.stat_result]] = {}

    def edit(name: str, old: str, new: str) -> None:
        path = tree / name
        kept.setdefault(path, (path.read_text(encoding="utf-8"), path.stat()))
        assert old in path.read_text(encoding="utf-8")
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    yield edit
    for path, (text, was) in kept.items():
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


# What follows from any changed score.
AFTER = dict.fromkeys(["collect_scores", "draw_tables", "draw_figures", "sync_tracking", "compile_report", "all"], 1)


def after(tree: Path) -> dict[str, int]:
    paper = (tree / "results" / "smoke" / "paper.pdf").is_file()
    return AFTER | ({"compile_paper": 1} if paper else {})


def test_an_edited_loss_runs_again_exactly_what_depends_on_it(tree: Path, edited: Any) -> None:
    edited("baselines/fixmatch.py", '"consistency":', '"consistency": 2 *')
    said = snakemake(tree, "-n", "--configfile", SMOKE)
    per_cell = dict.fromkeys(["train_method", "classify_images", "score_classification", "score_cost"], 1)
    assert jobs(said) == per_cell | after(tree)
    assert set(re.findall(r"method=(\w+)", said)) == {"fixmatch"}


def test_an_edited_generator_runs_again_with_its_images(tree: Path, edited: Any) -> None:
    edited("jointdiff/methods/joint.py", "import torch\n", "import torch\n\nCHANGED = 1\n")
    said = snakemake(tree, "-n", "--configfile", SMOKE)
    steps = "train_first classify_images generate_images explain_findings score_classification score_generation "
    per_cell = dict.fromkeys((steps + "score_localisation score_cost").split(), 2)
    # One module, two variants, and what learns from the images of one of them.
    per_cell |= {"train_method": 1, "classify_images": 3, "score_classification": 3, "score_cost": 3}
    assert jobs(said) == per_cell | after(tree)
    assert set(re.findall(r"method=(\w+)", said)) == {"joint", "mediffusion", "supervised_synthetic"}


def test_a_new_metric_trains_nothing(tree: Path, edited: Any) -> None:
    edited("jointdiff/explain/localisation.py", "THRESHOLD = 0.5", "THRESHOLD = 0.6")
    assert jobs(snakemake(tree, "-n", "--configfile", SMOKE)) == {"score_localisation": 5} | after(tree)


def test_comments_and_the_way_of_showing_run_nothing_again(tree: Path, edited: Any) -> None:
    edited("baselines/fixmatch.py", '"consistency":', '# Weighted by lambda_u.\n            "consistency":')
    edited("jointdiff/tracking.py", "LIVE_EVERY = 30.0", "LIVE_EVERY = 31.0")
    edited("jointdiff/progress.py", "\nclass Progress", "\nSHOWN = 1\n\n\nclass Progress")
    assert "Nothing to be done" in snakemake(tree, "-n", "--configfile", SMOKE)


def test_two_runs_give_the_same_scores(tree: Path, tmp_path: Path) -> None:
    config = str(tree / SMOKE)
    snakemake(tree, "results/smoke/scores.csv", "--directory", str(tmp_path), "--configfile", config, where=tmp_path)

    def numbers(folder: Path) -> list[dict[str, str]]:
        found = rows(folder / "results" / "smoke" / "scores.csv")
        return [row for row in found if not MEASURED.search(row["metric"])]

    assert numbers(tmp_path) == numbers(tree)
    assert len(numbers(tree)) > 300


def test_a_killed_training_ends_with_the_same_weights(tree: Path, tmp_path: Path) -> None:
    training = {"steps": 400, "batch_size": 8, "device": "cpu", "validate_every": 50, "log_every": 2}
    config = small(tmp_path, training={**training, "checkpoint_seconds": 0})
    cell = "results/small/phantom/labels-40/supervised/seed-0"
    weights = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        arguments = (f"{cell}/run.json", "--directory", str(folder), "--configfile", str(config))
        if name == "killed":
            running = subprocess.Popen(
                command(tree, *arguments), cwd=folder, env=environment(tree), stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert kill_training(running, folder), "the training ended before it could be killed"
            assert running.wait(timeout=120) != 0
            assert list(folder.glob("state/*/checkpoint.safetensors"))
            assert not (folder / cell / "run.json").exists()
        snakemake(tree, *arguments, where=folder)
        weights.append((folder / cell / "model" / "model.safetensors").read_bytes())
        weights.append((folder / cell / "metrics.jsonl").read_bytes())
    assert weights[:2] == weights[2:]


def kill_training(running: subprocess.Popen[Any], folder: Path) -> bool:
    """Kill the training job, and nothing else, after its first checkpoint."""
    while running.poll() is None:
        if list(folder.glob("state/*/checkpoint.safetensors")):
            for child in psutil.Process(running.pid).children(recursive=True):
                if "train_method.py" in " ".join(child.cmdline()) and "python" in child.name():
                    child.send_signal(signal.SIGKILL)
                    return True
        time.sleep(0.02)
    return False


def test_without_tex_the_tables_are_made_and_the_paper_is_left_out(tree: Path, tmp_path: Path) -> None:
    for tool in (
        "sh",
        "bash",
        "uname",
        "git",
        "rm",
        "which",
    ):  # the last for Snakemake's plugin for Slurm, if it is there
        if found := shutil.which(tool):
            (tmp_path / tool).symlink_to(found)
    path = f"{tmp_path}:{Path(sys.executable).parent}"
    assert "paper.pdf" not in snakemake(tree, "-n", "--forceall", "--configfile", SMOKE, PATH=path)
    table = "results/smoke/tables/cost.tex"
    (tree / table).unlink()
    said = snakemake(tree, table, "--configfile", SMOKE, PATH=path)
    assert "TeX is not complete (pdflatex is missing)" in said
    assert (tree / table).is_file()


def test_what_is_there_is_drawn_where_a_training_failed(tree: Path, tmp_path: Path) -> None:
    tiny = {"depth": 10, "width": 1}
    methods = {"supervised": {"settings": tiny}, "fixmatch": {"settings": {**tiny, "learning_rate": 1e30}}}
    config = small(tmp_path, methods=methods)
    said = snakemake(tree, "--keep-going", "--directory", str(tmp_path), "--configfile", str(config), fails=True)
    assert "uv run jointdiff partial" in said
    results = tmp_path / "results" / "small"
    assert not (results / "tables").exists()
    command = [sys.executable, "-m", "jointdiff.cli", "partial", str(config)]
    told = subprocess.run(
        command, cwd=tmp_path, env=environment(tree), check=True, capture_output=True, text=True
    ).stdout
    assert "1 of 2 cells are complete" in told
    assert re.search(
        r"fixmatch on phantom, labels 40, seed 0: failed: .*learning_rate.* \(see logs/small/train_method/", told
    )
    lines = {line["line"]: line for line in rows(results / "partial" / "tables" / "classification.csv")}
    assert float(lines["Supervised"]["Macro AUROC 40 labels"]) > 0
    assert lines["FixMatch"]["Macro AUROC 40 labels"] == "" and "failed: " in lines["FixMatch"]["notes"]


def test_an_unreachable_tracking_server_is_a_warning(tree: Path) -> None:
    marker = "results/smoke/tracking/synchronised.json"
    more = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    said = snakemake(tree, marker, "--forcerun", "sync_tracking", "--configfile", SMOKE, **more)
    assert said.count("MLflow was not updated") == 1
    assert '"complete": false' in (tree / marker).read_text(encoding="utf-8")
    snakemake(tree, marker, "--forcerun", "sync_tracking", "--configfile", SMOKE)
    assert '"complete": true' in (tree / marker).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sedes": [1]}, "sedes: unknown key 'sedes'; did you mean 'seeds'?"),
        ({"datasets": {"phantm": {"size": 16, "labels": [4]}}}, "unknown data set 'phantm'; did you mean 'phantom'?"),
        ({"methods": {"fixmach": {}}}, "unknown method 'fixmach'; did you mean 'fixmatch'?"),
    ],
    ids=["key", "data set", "method"],
)
def test_a_mistake_in_the_configuration_is_one_clear_message(
    tree: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    said = snakemake(tree, "-n", "--configfile", str(small(tmp_path, **changes)), fails=True)
    assert said.count(says) == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "target", "says"),
    [
        (
            {"datasets": {"phantom": {"size": 16, "labels": [4000], "options": {"patients": 40}}}},
            "results/small/phantom/labels-4000/split-0.parquet",
            "4000",
        ),
        (
            {"training": {"steps": 2, "device": "cuda"}},
            "results/small/phantom/labels-40/supervised/seed-0/run.json",
            "torch finds no GPU",
        ),
    ],
    ids=["budget", "no GPU"],
)
def test_a_step_that_cannot_go_on_says_why_once(
    tree: Path, tmp_path: Path, changes: dict[str, Any], target: str, says: str
) -> None:
    if says == "torch finds no GPU" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    config = str(small(tmp_path, **changes))
    said = snakemake(tree, target, "--directory", str(tmp_path), "--configfile", config, fails=True, where=tmp_path)
    (message,) = [line for line in said.splitlines() if " stopped: " in line]
    assert says in message
    assert "Traceback" not in said
    logs = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("logs/**/*.log"))
    assert "Traceback" in logs
