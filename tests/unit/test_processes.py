"""One job in several processes, and one step in several parts: the same results as without."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from jointdiff.config import ConfigError, Explanation, Generation, RunSpec, Voting, parse_experiment
from jointdiff.files import read_json
from jointdiff.inference.classify import classify, classify_by_votes
from jointdiff.inference.explain import explain
from jointdiff.inference.generate import generate
from jointdiff.jobs import settle
from jointdiff.method import Batch
from jointdiff.processes import WorkerError, join_group, launch
from jointdiff.registry import load_method
from jointdiff.training.loop import train
from jointdiff.training.shares import Shares
from tests.conftest import ROOT
from tests.tiny import tiny_phantoms, tiny_run

Data = dict[str, Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give each process one thread: on a CPU, sums are added in another order by another number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


def spec(method: str, parts: int, settings: dict[str, Any] | None = None, **training: Any) -> RunSpec:
    quick = {"steps": 6, "validate_every": 3, "log_every": 1, "micro_batches": parts}
    return tiny_run(method, settings=settings, **quick | training)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.rglob("*.safetensors")) for name, value in load_file(file).items()}


def losses(out: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if line["split"] == "train"]


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("joint", {}),
        ("joint", {"classification_every": 2}),  # in some steps the head has no gradient
        ("fixmatch", {}),  # batch normalisation, whose running means are followed
        ("freematch", {}),  # running means of its own
        ("mean_teacher", {}),
    ],
)
def test_two_processes_train_as_one(data: Data, tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    run = spec(method, 4, settings)
    for processes in (1, 2):
        place = {"out": tmp_path / str(processes), "state": tmp_path / f"state-{processes}"}
        launch(partial(train, run, **data, **place), processes=processes)
    alone, together = tmp_path / "1", tmp_path / "2"
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    np.testing.assert_allclose(losses(together, "gradient_norm"), losses(alone, "gradient_norm"), rtol=1e-4)
    one, other = weights(alone / "model"), weights(together / "model")
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    costs = [read_json(out / "run.json")["cost"] for out in (alone, together)]
    assert [cost["processes"] for cost in costs] == [1, 2]
    assert not list((tmp_path / "state-2").iterdir())


def test_two_processes_train_as_one_with_half_the_bits(data: Data, tmp_path: Path) -> None:
    run = spec("joint", 2, precision="bf16")
    for processes in (1, 2):
        place = {"out": tmp_path / str(processes), "state": tmp_path / f"state-{processes}"}
        launch(partial(train, run, **data, **place), processes=processes)
    train(spec("joint", 2), **data, out=tmp_path / "full", state=tmp_path / "state-full")
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-3)
    assert losses(tmp_path / "1") != losses(tmp_path / "full"), "it did compute with half the bits"
    np.testing.assert_allclose(losses(tmp_path / "1"), losses(tmp_path / "full"), rtol=0.05)


def test_a_training_of_two_processes_is_resumed_by_one(data: Data, tmp_path: Path) -> None:
    run = spec("joint", 2, steps=60, checkpoint_seconds=0.0)
    train(run, **data, out=tmp_path / "alone", state=tmp_path / "state-alone")
    script = f"""
        from functools import partial
        from jointdiff.config import RunSpec
        from jointdiff.processes import launch
        from jointdiff.training.loop import train
        run = RunSpec.model_validate_json({run.model_dump_json()!r})
        launch(partial(train, run, store={str(data["store"])!r}, split={str(data["split"])!r},
                       out={str(tmp_path / "resumed")!r}, state={str(tmp_path / "state")!r}), processes=2)
        """
    job = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], start_new_session=True)
    checkpoint, deadline = tmp_path / "state/checkpoint.safetensors", time.monotonic() + 120
    while not checkpoint.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    train(run, **data, out=tmp_path / "resumed", state=tmp_path / "state")
    np.testing.assert_allclose(losses(tmp_path / "resumed"), losses(tmp_path / "alone"), rtol=1e-4)


TORCHRUN = """
import os, sys
from jointdiff.config import RunSpec
from jointdiff.training.loop import train

run, store, split, out, state = sys.argv[1:]
train(RunSpec.model_validate_json(run), store=store, split=split, out=out, state=state)
"""


def test_two_hosts_train_as_one(data: Data, tmp_path: Path) -> None:
    """Two agents of torchrun on loopback, each with a process, as on two machines."""
    run = spec("fixmatch", 2)
    (tmp_path / "script.py").write_text(TORCHRUN)
    given = [run.model_dump_json(), *map(str, data.values()), str(tmp_path / "hosts"), str(tmp_path / "state")]
    hosts = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
                *("--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={29400 + os.getpid() % 500}"),
                *(str(tmp_path / "script.py"), *given),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    assert [host.wait(timeout=120) for host in hosts] == [0, 0]
    train(run, **data, out=tmp_path / "alone", state=tmp_path / "state-alone")
    np.testing.assert_allclose(losses(tmp_path / "hosts"), losses(tmp_path / "alone"), rtol=1e-5)


class Regression(nn.Module):
    """A loss without noise and without batch statistics, of which parts are as good as the whole."""

    memory = ()

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def forward(self, batch: Batch, views: Any, averaged: Any) -> dict[str, torch.Tensor]:
        error = self.net(batch.labelled) - batch.labels
        return {"labelled": error.square().mean(), "unlabelled": self.net(batch.unlabelled).abs().mean()}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    labelled, unlabelled = (torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=generator) for n in (8, 24))
    labels = torch.randn(8, 2, dtype=torch.float64, generator=generator)
    trained: Any = Regression()
    shares = Shares(trained, accelerator=Accelerator(cpu=True), seed=0, count=count, batch_size=8)
    shares.prepare(torch.optim.SGD(trained.parameters(), lr=1.0))

    def batch_of(share: int, shares: int) -> Batch:
        parts = [values.chunk(shares)[share] for values in (labelled, labels, unlabelled)]
        return Batch(labelled=parts[0], labels=parts[1], unlabelled=parts[2], step=0, steps=1)

    terms = shares.backward(0, batch_of, None, None)  # type: ignore[arg-type]
    whole: Any = Regression()
    expected = sum(whole(batch_of(0, 1), None, None).values())
    expected.backward()
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(trained.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_every_part_of_every_step_has_noise_of_its_own() -> None:
    drawn = []

    class Noise(Regression):
        def forward(self, batch: Batch, views: Any, averaged: Any) -> dict[str, torch.Tensor]:
            drawn.append(torch.rand(()).item())
            return super().forward(batch, views, averaged)

    trained: Any = Noise()
    shares = Shares(trained, accelerator=Accelerator(cpu=True), seed=0, count=4, batch_size=4)
    shares.prepare(torch.optim.SGD(trained.parameters(), lr=1.0))
    part = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    batch = Batch(labelled=part, labels=torch.zeros(1, 2), unlabelled=part, step=0, steps=2)
    for step in range(2):
        shares.backward(step, lambda share, count: batch, None, None)  # type: ignore[arg-type]
    assert len(set(drawn)) == 8


def little_memory(monkeypatch: pytest.MonkeyPatch, method: str, most: int) -> None:
    """Let a method run out of memory, half-way through a step, where it is given more labelled images than this."""
    kind = load_method(method)
    losses = kind.losses

    def limited(self: Any, batch: Batch, *others: Any) -> Any:
        terms = losses(self, batch, *others)  # batch normalisation has already followed the batch
        if len(batch.labelled) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it.")
        return terms

    monkeypatch.setattr(kind, "losses", limited)


@pytest.mark.parametrize("method", ["joint", "fixmatch"])
def test_too_little_memory_halves_the_parts_and_not_the_batch(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    train(spec(method, 2, log_every=2), **data, out=tmp_path / "planned", state=tmp_path / "state-planned")
    little_memory(monkeypatch, method, most=2)
    train(spec(method, 1, log_every=2), **data, out=tmp_path / "forced", state=tmp_path / "state")
    planned, forced = (weights(tmp_path / name / "model") for name in ("planned", "forced"))
    assert all(torch.equal(planned[name], forced[name]) for name in planned)
    assert losses(tmp_path / "planned") == losses(tmp_path / "forced")
    assert read_json(tmp_path / "forced/run.json")["cost"]["micro_batches"] == 2
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(said) == 1
    assert "goes on to learn from 4, in 2 parts of 2" in said[0]


def test_a_step_that_runs_out_of_memory_later_is_done_again(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running means are those of before the step, so that nothing of the failed attempt remains."""
    method: Any = load_method("fixmatch").build(*_built(data))
    shares = Shares(method, accelerator=Accelerator(cpu=True), seed=0, count=1, batch_size=4)
    shares.prepare(torch.optim.SGD(method.parameters(), lr=0.1))
    images, before = torch.rand(4, 1, 16, 16), [buffer.clone() for buffer in method.buffers()]

    def fails_once() -> str:
        method.net(images)
        if shares.count == 1:
            raise torch.OutOfMemoryError("no")
        return "done"

    assert shares.fitting(fails_once) == "done"
    batches = [(now, old) for now, old in zip(method.buffers(), before, strict=True) if now.dtype == torch.long]
    assert batches
    assert all(now == old + 1 for now, old in batches)


def _built(data: Data) -> tuple[Any, dict[str, Any]]:
    from jointdiff.data.store import open_store

    return open_store(data["store"]).info, {"depth": 10, "width": 1}


def test_unequal_parts_are_refused_before_anything_runs() -> None:
    content = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    content["training"]["micro_batches"] = 5
    size = content["training"]["batch_size"]
    with pytest.raises(
        ConfigError, match=rf"a batch of {size} \(training.batch_size\) cannot be cut into 5 equal parts"
    ):
        parse_experiment(content)


@pytest.mark.parametrize("method", ["flexmatch", "acpl"])
def test_a_record_of_every_image_is_not_shared(data: Data, tmp_path: Path, method: str) -> None:
    with pytest.raises(ConfigError, match="keeps a record of every image, which parts of a batch cannot share; use 1"):
        train(spec(method, 2), **data, out=tmp_path / "out", state=tmp_path / "state")


def test_processes_without_a_part_are_refused(data: Data, tmp_path: Path) -> None:
    work = partial(train, spec("joint", 1), **data, out=tmp_path / "out", state=tmp_path / "state")
    with pytest.raises(WorkerError, match=r"training\.micro_batches: 1 cannot be shared among 2 processes; use a mult"):
        launch(work, processes=2)


def test_an_image_that_does_not_fit_is_an_error(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    little_memory(monkeypatch, "supervised", most=0)
    with pytest.raises(ConfigError, match=r"not enough memory for 1 labelled image.*Tried to allocate 2\.00"):
        train(spec("supervised", 1), **data, out=tmp_path / "out", state=tmp_path / "state")


# --- Evaluation and sampling ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for method in ("joint", "diffusion_classifier", "supervised"):
        train(spec(method, 1, steps=2), **data, out=folder / method, state=folder / "state" / method)
    return {method: folder / method / "model" for method in ("joint", "diffusion_classifier", "supervised")}


def table(path: Path) -> dict[str, list[Any]]:
    return pq.read_table(path).to_pydict()


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name not in ("cost", "environment")}


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_answers(
    data: Data, models: dict[str, Path], tmp_path: Path, processes: int
) -> None:
    for n in (1, processes):
        out = tmp_path / str(n)
        quick: dict[str, Any] = {**data, "device": "cpu"}
        vote = Voting(trials=4, block=2, batch_size=7)
        draw = Generation(images=11, steps=2, batch_size=3)
        edit = Explanation(images_per_finding=3, healthy_per_finding=2, steps=2, noises=1, batch_size=2)
        jobs = [
            partial(classify, models["joint"], out=out / "said.parquet", batch_size=3, **quick),
            partial(
                classify_by_votes,
                models["diffusion_classifier"],
                out=out / "voted.parquet",
                votes=out / "votes.parquet",
                seed=0,
                voting=vote,
                batch_size=5,
                **quick,
            ),
            partial(
                generate,
                models["joint"],
                out=out / "drawn.npz",
                picture=out / "drawn.png",
                seed=0,
                settings=draw,
                device="cpu",
            ),
            partial(
                explain,
                models["joint"],
                out=out / "explained.npz",
                picture=out / "explained.png",
                explainers=["counterfactual", "grad_cam", "random_map"],
                seed=0,
                settings=edit,
                judge=models["supervised"],
                **quick,
            ),
        ]
        for job in jobs:
            launch(job, processes=n)
    for name in ("said", "voted", "votes"):
        assert table(tmp_path / f"{processes}/{name}.parquet") == table(tmp_path / f"1/{name}.parquet")
    for name in ("drawn", "explained"):
        one, other = (arrays(tmp_path / f"{n}/{name}.npz") for n in (1, processes))
        assert one.keys() == other.keys()
        for key, values in one.items():
            np.testing.assert_array_equal(other[key], values, err_msg=key)
    assert (tmp_path / f"{processes}/drawn.png").read_bytes() == (tmp_path / "1/drawn.png").read_bytes()


# --- Processes --------------------------------------------------------------------------------------------------------


def test_what_a_user_can_mend_ends_a_job_with_its_message() -> None:
    def work() -> None:
        if os.environ["RANK"] == "1":
            raise ValueError("table.csv, column age: it is missing")
        time.sleep(60)

    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"^table\.csv, column age: it is missing$"):
        launch(work, processes=2)
    assert time.monotonic() - started < 30, "the other process is not waited for"


def test_an_exit_code_is_that_of_the_job() -> None:
    with pytest.raises(SystemExit) as caught:
        launch(partial(sys.exit, 75), processes=2)
    assert caught.value.code == 75


def test_signals_reach_every_process(tmp_path: Path) -> None:
    script = f"""
        import os, signal, sys, time
        from pathlib import Path
        from jointdiff.processes import launch

        def work():
            def told(number, frame):
                Path({str(tmp_path)!r}, os.environ["RANK"] + ".told").touch()
                sys.exit(75)
            signal.signal(signal.SIGUSR1, told)
            Path({str(tmp_path)!r}, os.environ["RANK"] + ".ready").touch()
            time.sleep(60)

        launch(work, processes=2)
        """
    job = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 75
    assert list(tmp_path.glob("*.told"))


@pytest.mark.parametrize("around", [{"WORLD_SIZE": "4", "RANK": "0"}, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_processes_that_nobody_began_are_not_waited_for(
    around: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"torchrun did not begin it.*unset WORLD_SIZE"):
        join_group(torch.device("cpu"))
    environment = {**around, "HOME": "/here", "MPLBACKEND": "module://of_a_notebook"}
    said = settle(environment)
    assert environment == {"HOME": "/here", "MPLBACKEND": "Agg", "PYTHONUTF8": "1"}
    assert said is not None and all(f"{name}={value}" in said for name, value in around.items())
    assert settle(environment) is None


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    environment: dict[str, str] = {}
    settle(environment)
    assert environment["USER"] == f"uid-{os.getuid()}"
