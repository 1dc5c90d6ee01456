"""What a step must not do: call a network twice, wait for the device, carry images back and forth.

These counts are exact on any machine, where times are not; the times are in docs/performance.md.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jointdiff.training.loop as loop
from jointdiff.config import Explanation, Generation, Voting
from jointdiff.data.augment import Views
from jointdiff.data.store import open_store
from jointdiff.nets.unet import UNet
from jointdiff.registry import load_method
from jointdiff.training.averaging import averaged_copy, update_average
from jointdiff.training.feed import Feed
from jointdiff.training.loop import train
from jointdiff.trials import hold_trials
from tests.conftest import ROOT
from tests.tiny import SMALL, tiny_phantoms, tiny_run

# Operations that make the host wait for a GPU: a value is read, or the size of what comes out depends on values.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class Operations(TorchDispatchMode):
    """Counts the operations for which a host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        booleans = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or booleans:
            self.waiting[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_phantoms(tmp_path_factory.mktemp("data"), labelled=12, validation=8, unlabelled=16, test=12)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the passes through halves of a U-Net, and the images that go through them."""
    calls: Counter[str] = Counter()

    def counting(name: str, real: Callable[..., Any], images_in: Callable[..., int]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            calls[f"{name} images"] += images_in(*args)
            return real(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(UNet, "encode", counting("encode", UNet.encode, lambda images, *_: len(images)))
        patched.setattr(UNet, "decode", counting("decode", UNet.decode, lambda encoding: len(encoding.middle)))
        yield calls


class Step:
    """One optimiser step of a method, as the loop does it, on a batch that lies on the device."""

    def __init__(self, data: dict[str, Path], method: str, settings: dict[str, Any] | None = None) -> None:
        store = open_store(data["store"])
        self.feed = Feed(
            store, store.split_rows(data["split"]), seed=0, device=torch.device("cpu"), resident_bytes=2**30
        )
        kind = load_method(method)
        self.method: Any = kind.build(store.info, {**SMALL.get(method, {}), **(settings or {})})
        self.method.prepare(self.feed.labels[torch.from_numpy(self.feed.labelled)], len(self.feed.unlabelled))
        self.averaged, self.views = averaged_copy(self.method), Views(store.info.augmentations)
        self.optimiser = torch.optim.AdamW(self.method.parameters(), lr=1e-3, fused=True)
        self.batch = self.feed.batch(3, steps=10, labelled=4, unlabelled=4 * self.method.settings.unlabelled_ratio)

    def take(self) -> None:
        terms = self.method(self.batch, self.views, self.averaged)
        torch.stack(list(terms.values())).sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        update_average(self.averaged, self.method, decay=0.9, step=4)


# SimCLR's contrast is a library's, which looks for pairs by their indices.
@pytest.mark.parametrize("method", sorted(SMALL.keys() - {"simclr"}))
def test_no_step_of_any_method_waits_for_the_device(data: dict[str, Path], method: str) -> None:
    step = Step(data, method)
    step.take()  # once, for what is set up lazily
    with Operations() as seen:
        step.take()
    assert not seen.waiting


def test_the_count_of_waits_sees_each_kind() -> None:
    values = torch.arange(4.0)
    with Operations() as seen:
        values.sum().item()
        bool(values[0] > 1)
        values[values > 1]
        values.nonzero()
        torch.unique(values)
    assert set(seen.waiting) >= {"_local_scalar_dense", "index", "nonzero", "_unique2"}
    assert seen.waiting["_local_scalar_dense"] == 2


@pytest.mark.parametrize(
    ("settings", "encoded", "decoded"),
    [
        ({"classifier_input": "clean"}, 4 + 4, 4),  # noisy unlabelled images, and clean labelled ones
        ({"classifier_input": "both"}, 4 + 2 * 4, 4),
        ({"classifier_input": "clean", "consistency": "fixmatch", "consistency_view": "noise"}, 4 + 4, 4),
        ({"classifier_input": "clean", "unlabelled_ratio": 3}, 12 + 4, 12),
    ],
)
def test_a_joint_step_is_one_pass_through_each_half(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], encoded: int, decoded: int
) -> None:
    step = Step(data, "joint", settings)
    with counted(monkeypatch) as calls:
        step.take()
    asks_average = settings.get("consistency") is not None  # about clean images, without a gradient
    images = len(step.batch.unlabelled)
    assert calls["encode"] == 1 + asks_average
    assert calls["encode images"] == encoded + asks_average * images
    assert (calls["decode"], calls["decode images"]) == (1, decoded)


def test_a_training_reads_values_at_its_log_lines_alone(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as many steps between two lines bring no more values to the host."""
    read = {}
    monkeypatch.setattr(loop, "steps_and_gflop", lambda *_, plan, **__: (plan.steps, 0.0))
    for steps in (6, 12):
        run = tiny_run("joint", steps=steps, log_every=steps, validate_every=steps, checkpoint_seconds=1e9)
        with Operations() as seen:
            train(run, **data, out=tmp_path / f"{steps}", state=tmp_path / f"state-{steps}")
        read[steps] = seen.waiting
    assert read[6] == read[12]


def test_a_batch_on_the_device_carries_places_to_it_and_no_pixels(data: dict[str, Path]) -> None:
    step = Step(data, "joint")
    carried: list[int] = []
    gathered = torch.from_numpy

    def watch(values: np.ndarray) -> torch.Tensor:
        carried.append(values.nbytes)
        return gathered(values)

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(torch, "from_numpy", watch)
        batch = step.feed.batch(5, steps=10, labelled=4, unlabelled=8)
    images = len(batch.labelled) + len(batch.unlabelled)
    assert sum(carried) <= images * 8 * 3, "eight bytes for each place, as often as it is used"


def test_an_image_is_drawn_in_as_many_passes_as_it_has_steps(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Step(data, "joint").method.eval()
    settings = Generation(images=4, steps=5)
    with counted(monkeypatch) as calls:
        method.sample(torch.eye(3)[[0, 1, 2, 0]], torch.arange(4), steps=settings.steps, sampler="dpm++", guidance=0.0)
    assert (calls["encode"], calls["decode"]) == (5, 5)
    assert calls["encode images"] == 4 * 5


def test_the_control_of_a_counterfactual_is_rebuilt_once(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code estimates the unchanged image anew in each guided step."""
    step = Step(data, "joint")
    how = Explanation(steps=4, noises=2, guide="image")
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    with counted(monkeypatch) as calls:
        answer = step.method.eval().counterfactual(images, 0, 0.0, torch.arange(3), how=how)
    # A step of the edit: the U-Net, and the head on the estimate; a step of the control: the U-Net. Both begin with the
    # same noisy images, whose estimate is shared.
    assert calls["decode images"] == 3 * 2 * (4 + 3)
    assert calls["encode images"] == 3 * 2 * (2 * 4 + 3)
    assert calls["encode"] == 2 * 4 + 3, "images and noises are asked about together"
    assert answer.calls == math.ceil(calls["encode images"] / 3)


def test_trials_images_and_conditions_are_asked_about_together(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Step(data, "diffusion_classifier").method.eval()
    images, voting = torch.rand(5, 1, 16, 16), Voting(trials=4, block=2, stop=False, batch_size=32)
    with counted(monkeypatch) as calls:
        ballot = hold_trials(method, images, np.arange(5), voting=voting)
    asked = int(ballot.calls.sum())
    assert asked == 5 * 4 * method.task.conditions
    assert calls["encode images"] == asked
    assert calls["encode"] == 2 * math.ceil(asked / 2 / 32)


def test_the_benchmark_compares_steps_that_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever manner a step is done, its loss is that of the published one, also after the weights have moved."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("training_step")
    monkeypatch.setitem(benchmark.UNETS, "small", {**benchmark.UNETS["small"], "width": 8, "blocks": 1})
    losses = []
    for manner in benchmark.manners().values():
        steps = benchmark.Steps("small", manner, batch=2)
        losses.append([steps.take().item() for _ in range(3)])
    np.testing.assert_allclose(losses, np.broadcast_to(losses[0], np.shape(losses)), rtol=1e-4)
