"""Grids through `profiles/slurm` and a real Slurm: the same numbers as here, and what happens when things fail.

Each test prints what became of its jobs, submitted, finished, cancelled; docs/cluster.md has a table of them.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.workflow.flow import SMOKE, copy_tree, environment, small, snakemake
from tests.workflow.slurm import Slurm, of_job, running_slurm, wait_for

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slurm,
    pytest.mark.skipif(
        find_spec("snakemake_executor_plugin_slurm") is None,
        reason="needs Snakemake's plugin: uv run --group cluster pytest tests/workflow/test_slurm.py",
    ),
]

TINY = {"depth": 10, "width": 1}
METHODS = {
    "supervised": {"settings": TINY},
    "slower": {"base": "supervised", "settings": {**TINY, "learning_rate": 1e-4}},
    "random": {},
}
# Long enough to be met in the middle; a checkpoint after every step shows when that is.
TRAINING = {
    "steps": 100,
    "batch_size": 8,
    "device": "cpu",
    "validate_every": 50,
    "log_every": 2,
    "checkpoint_seconds": 0,
}
CELL = "results/small/phantom/labels-40/{}/seed-0"
MEASURED = re.compile(r"ms_per_|seconds|images_per_second|peak_memory")  # what no two runs share
QUICK = (
    "--slurm-init-seconds-before-status-checks", "1",
    "--seconds-between-status-checks", "1",
    "--latency-wait", "10",
    "--slurm-status-command", "squeue",  # no accounts are kept here
    "--set-scatter", "prepare=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm() as started:
        yield started


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow in which the grid has run without Slurm."""
    folder = copy_tree(tmp_path_factory.mktemp("grid"))
    config = small(folder, methods=METHODS, training=TRAINING)
    threads = ("--set-threads", "train_method=2")  # as the profile says: sums depend on their number
    snakemake(folder, "results/small/scores.csv", "--configfile", str(config), *threads)
    return folder


@pytest.fixture
def counted(slurm: Slurm) -> Iterator[None]:
    """Print what became of a test's jobs."""
    before = set(slurm.jobs("all"))
    yield
    states = [slurm.state(job) for job in slurm.jobs("all") if job not in before]
    restarts = sum(int(slurm.of(job, "Restarts")) for job in slurm.jobs("all") if job not in before)
    # Slurm forgets a job five minutes after its end, so that a long test sees its last jobs alone.
    print(f"Slurm jobs: {len(states)} submitted, {restarts} sent back by Slurm, {dict(Counter(states))}")


def submit(grid: Path, slurm: Slurm, *arguments: str, config: str = "small.yaml") -> subprocess.Popen[str]:
    """Start Snakemake with the profile on a copy of the workflow."""
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", "--cores", "2"]
    known = environment(grid)
    return subprocess.Popen(
        [*command, *arguments, "--configfile", config, *QUICK],
        cwd=grid, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**known, **slurm.environment, "PATH": f"{slurm.folder / 'bin'}:{known['PATH']}"},
        # Tests that run in the background of a shell ignore Ctrl-C, and all that they start would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def said(running: subprocess.Popen[str], *, fails: bool = False, seconds: float = 600) -> str:
    """Wait for Snakemake and return all that it said."""
    try:
        text = running.communicate(timeout=seconds)[0]
    finally:
        running.kill()
    assert (running.returncode != 0) == fails, text[-8000:]
    return text


def take_away(grid: Path, cell: str) -> list[bytes]:
    """Remove what a training left, and return the weights and the curves that it must give again."""
    kept = trained(grid, cell)
    shutil.rmtree(grid / cell)
    return kept


def trained(grid: Path, cell: str) -> list[bytes]:
    return [(grid / cell / name).read_bytes() for name in ("model/model.safetensors", "metrics.jsonl")]


def in_the_middle(grid: Path, slurm: Slurm) -> str:
    """Wait until the only training has written a checkpoint, and return its Slurm job."""
    wait_for(lambda: list(grid.glob("state/*/checkpoint.safetensors")), "a checkpoint", seconds=180)
    (job,) = slurm.jobs("RUNNING")
    return job


def numbers(folder: Path, experiment: str = "small") -> list[dict[str, str]]:
    with (folder / "results" / experiment / "scores.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if not MEASURED.search(row["metric"])]


def test_a_grid_gives_the_numbers_of_this_machine(grid: Path, slurm: Slurm, tmp_path: Path, counted: None) -> None:
    away = copy_tree(tmp_path)
    shutil.copy(grid / "small.yaml", away)
    text = said(submit(away, slurm, "results/small/scores.csv"))
    assert numbers(away) == numbers(grid)
    assert len(numbers(grid)) > 100

    logs = re.findall(r"^ +log: (\S+)$", text, flags=re.MULTILINE)
    started = re.findall(r"^ *(?:local)?rule (\w+):$", text, flags=re.MULTILINE)
    assert len(started) == len(logs) == len(set(logs)), "one log per job"
    assert all((away / log).is_file() for log in logs)
    sent = re.findall(r"has been submitted with SLURM jobid (\d+) \(log: .*/((?:rule|group)_\w+)/", text)
    kinds = Counter(kind for _, kind in sent)
    assert (kinds["rule_train_method"], kinds["rule_classify_images"]) == (3, 3)
    assert sum(count for kind, count in kinds.items() if kind.startswith("group_scores")) == 1, "six steps in one job"


@pytest.mark.skipif(not os.environ.get("JOINTDIFF_WHOLE_GRID"), reason="ten minutes more: set JOINTDIFF_WHOLE_GRID")
@pytest.mark.timeout(3000)
def test_the_whole_smoke_grid_gives_the_numbers_of_this_machine(
    tree: Path, slurm: Slurm, tmp_path: Path, counted: None
) -> None:
    away = copy_tree(tmp_path)
    threads = [f"{rule}=1" for rule in ("train_autoencoder", "train_method", "train_first")]  # as on this machine
    text = said(submit(away, slurm, "--set-threads", *threads, config=SMOKE), seconds=2400)
    assert "(100%) done" in text
    assert numbers(away, "smoke") == numbers(tree, "smoke")
    assert len(numbers(tree, "smoke")) > 500
    assert (away / "results/smoke/report.html").is_file()


def test_an_interrupted_snakemake_cancels_its_jobs(grid: Path, slurm: Slurm, counted: None) -> None:
    (grid / "long").mkdir()
    long = small(grid / "long", name="long", methods=METHODS, training={**TRAINING, "steps": 1_000_000})

    cells = [f"{CELL.format(method)}/run.json".replace("small", "long") for method in ("supervised", "slower")]
    running = submit(grid, slurm, *cells, config=str(long))
    wait_for(lambda: len(list(grid.glob("state/*/checkpoint.safetensors"))) == 2, "two trainings", seconds=180)
    sent = slurm.jobs("RUNNING")
    running.send_signal(signal.SIGINT)
    said(running, fails=True)
    wait_for(lambda: not slurm.jobs(), "an empty queue")
    assert [slurm.state(job) for job in sent] == ["CANCELLED", "CANCELLED"]
    wait_for(lambda: not [process for process in slurm.processes() if of_job(process)], "the end of its processes")
    shutil.rmtree(grid / "state")


def test_a_job_without_the_memory_it_needs_is_sent_again_with_more(grid: Path, slurm: Slurm, counted: None) -> None:
    before, cell = set(slurm.jobs("all")), CELL.format("supervised")
    expected = take_away(grid, cell)
    more = "train_method:mem_mb=100 if attempt == 1 else 8000"
    text = said(submit(grid, slurm, f"{cell}/run.json", "--set-resources", more))
    assert text.count("Trying to restart job") == 1
    asked = {job: slurm.of(job, "MinMemoryNode") for job in slurm.jobs("all") if job not in before}
    assert list(asked.values()) == ["100M", "8000M"]
    assert trained(grid, cell) == expected


@pytest.mark.parametrize(("how", "state"), [("KILL", "CANCELLED"), ("TERM", "FAILED")])
def test_a_training_that_was_ended_goes_on(grid: Path, slurm: Slurm, counted: None, how: str, state: str) -> None:
    cell = CELL.format("slower")
    expected = take_away(grid, cell)
    running = submit(grid, slurm, f"{cell}/run.json")
    job = in_the_middle(grid, slurm)
    slurm.ask("scancel", f"--signal={how}", job)
    text = said(running)
    assert text.count("Trying to restart job") == 1
    assert slurm.state(job) == state
    assert trained(grid, cell) == expected


def test_a_node_that_goes_down_and_returns_loses_nothing(grid: Path, slurm: Slurm, counted: None) -> None:
    cell = CELL.format("supervised")
    expected = take_away(grid, cell)
    running = submit(grid, slurm, f"{cell}/run.json")
    job = in_the_middle(grid, slurm)
    slurm.lose_node()
    wait_for(lambda: slurm.state(job) == "PENDING", "the job in the queue again")
    slurm.start_node()
    text = said(running)
    assert "Trying to restart job" not in text, "Slurm did"
    assert (slurm.state(job), slurm.of(job, "Restarts")) == ("COMPLETED", "1")
    assert trained(grid, cell) == expected


def test_a_training_asks_for_a_gpu_that_the_login_node_lacks(grid: Path, slurm: Slurm, counted: None) -> None:
    (grid / "auto").mkdir()
    config = small(grid / "auto", name="auto", methods=METHODS, training={"steps": 4, "device": "auto"})
    cell = CELL.format("supervised").replace("small", "auto")
    text = said(submit(grid, slurm, f"{cell}/run.json", "--retries", "0", config=str(config)), fails=True)
    assert "SLURM sbatch failed" in text and "--gpus=1" in text, "this Slurm has no GPU either"
