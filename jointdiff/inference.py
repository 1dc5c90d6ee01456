"""What a trained model is asked for: predictions, images, explanations. One model per call, all answers in one file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdiff.batches import image_batches
from jointdiff.config import ConfigError, Explanation, Generation, Voting
from jointdiff.data.source import DataInfo
from jointdiff.data.store import Store, open_store
from jointdiff.devices import pick_device
from jointdiff.evaluate.voting import Votes, fixed, replay, write_votes
from jointdiff.explain.archive import ENFORCED
from jointdiff.explain.saliency import centre_prior, change_map, grad_cam, random_map
from jointdiff.files import atomic_path
from jointdiff.method import Explainer, Generator, HasFeatures, Method, Voter, to_bytes
from jointdiff.models import load_model
from jointdiff.pictures import save_grid, save_strips
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng
from jointdiff.trials import hold_trials


def classify(
    model: Path | str,
    *,
    store: Path | str,
    split: Path | str,
    out: Path | str,
    batch_size: int = 256,
    device: str = "auto",
) -> None:
    """Write the probabilities of every validation and test image to a Parquet table."""
    data, target = open_store(store), pick_device(device)
    method = load_model(model).to(target)
    rows, role = _judged(data, split)
    started = time.perf_counter()
    scores = answers(method.predict, data.images, rows, batch_size=batch_size, device=target)
    cost = {"ms_per_image": 1000.0 * (time.perf_counter() - started) / len(rows), "calls_per_image": 1.0}
    _write_predictions(out, data, rows, role, scores, cost)


def classify_by_votes(
    model: Path | str,
    *,
    store: Path | str,
    split: Path | str,
    out: Path | str,
    votes: Path | str,
    seed: int,
    voting: Voting,
    batch_size: int = 256,
    device: str = "auto",
) -> None:
    """Let a diffusion classifier vote on every validation and test image; keep every trial beside the probabilities.

    Raises:
        ConfigError: the model is no diffusion classifier.
    """
    data, target = open_store(store), pick_device(device)
    method = load_model(model).to(target)
    if not isinstance(method, Voter):
        raise ConfigError(f"{model}: {type(method).__name__} holds no trials; only diffusion classifiers vote")
    rows, role = _judged(data, split, validation=voting.validation_images, seed=seed)
    seeds = np.array([derive(seed, "votes", str(data.sample_ids[row])) for row in rows])
    ballots, started = [], time.perf_counter()
    with Progress("trials", total=len(rows) * voting.trials, unit="trials") as progress:
        batches = image_batches(data.images, rows, batch_size=batch_size, device=target)
        for part, images in zip(np.split(seeds, range(batch_size, len(rows), batch_size)), batches, strict=True):
            ballots.append(hold_trials(method, images, part, voting=voting, progress=progress))
    steps, errors = (np.concatenate([getattr(ballot, name) for ballot in ballots]) for name in ("steps", "errors"))
    cost = {
        "ms_per_image": 1000.0 * (time.perf_counter() - started) / len(rows),
        "calls_per_image": float(np.mean(np.concatenate([ballot.calls for ballot in ballots]))),
    }
    contests, kind = method.task.contests, data.info.labels.kind
    if voting.stop:
        answer = replay(errors, contests, kind=kind, trials=voting.trials, error=voting.error, block=voting.block)
    else:
        answer = fixed(errors, contests, kind=kind, rule=voting.rule, trials=voting.trials)
    _write_predictions(out, data, rows, role, answer.probabilities, cost)
    record = Votes(
        sample_ids=data.sample_ids[rows],
        role=role,
        steps=steps,
        errors=errors,
        conditions=method.task.condition_names,
        contests=contests,
        kind=kind,
        names=data.info.labels.names,
        cost=cost,
    )
    write_votes(votes, record)


def _judged(
    data: Store, split: Path | str, *, validation: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and roles of the images that a model is judged on: at most so many of validation, then test."""
    roles = data.split_rows(split)
    if validation is not None and validation < len(roles["validation"]):
        chosen = rng(seed, "validation votes").permutation(roles["validation"])[:validation]
        roles["validation"] = np.sort(chosen)
    judged = ["validation", "test"]
    return np.concatenate([roles[role] for role in judged]), np.repeat(judged, [len(roles[role]) for role in judged])


def _write_predictions(
    out: Path | str, data: Store, rows: np.ndarray, role: np.ndarray, scores: np.ndarray, cost: dict[str, float]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = data.info.labels.names
    columns: dict[str, Any] = {"sample_id": data.sample_ids[rows], "group": data.groups[rows], "role": role}
    columns |= {f"score:{name}": scores[:, k] for k, name in enumerate(names)}
    columns |= {f"label:{name}": data.labels[rows, k] for k, name in enumerate(names)}
    table = pa.table(columns).replace_schema_metadata({"cost": json.dumps(cost), "kind": data.info.labels.kind})
    with atomic_path(out) as aside:
        pq.write_table(table, aside)


@torch.no_grad()
def answers(
    ask: Callable[[Tensor], Tensor],
    pixels: np.ndarray,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Return what ``ask`` (a model's predict or features) says of some rows of uint8 images (N, H, W, C)."""
    batches = image_batches(pixels, rows, batch_size=batch_size, device=device)
    return torch.cat([ask(images) for images in batches]).float().cpu().numpy()


def wanted_labels(kind: str, count: int, findings: int) -> np.ndarray:
    """Return label vectors (count, findings) in turn: each class, or no finding and then each finding alone."""
    vectors = np.eye(findings, dtype=np.float32)
    if kind == "multi_label":
        vectors = np.concatenate([np.zeros((1, findings), dtype=np.float32), vectors])
    return vectors[np.arange(count) % len(vectors)]


def generate(
    model: Path | str,
    *,
    out: Path | str,
    picture: Path | str,
    seed: int,
    settings: Generation,
    store: Path | str | None = None,
    split: Path | str | None = None,
    only: Sequence[int] | None = None,
    device: str = "auto",
) -> None:
    """Draw images for every class or finding in turn, or for ``only`` some, and write them with a grid to look at.

    With ``settings.labels`` pseudo, what the model says of the unlabelled images of a split is asked for instead. The
    labels asked for and the model's own answers about the images drawn (pseudo-labels) are stored with them.

    Raises:
        ConfigError: the model cannot generate, or pseudo-labels are asked for without images to take them from.
    """
    target = pick_device(device)
    method = load_model(model).to(target)
    info = method.data
    if not isinstance(method, Generator):
        raise ConfigError(f"methods: {type(method).__name__} draws no images; set generate: false for it")
    if only is not None:
        labels = np.eye(len(info.labels.names), dtype=np.float32)[np.resize(np.array(only), settings.images)]
    elif settings.labels == "each":
        labels = wanted_labels(info.labels.kind, settings.images, len(info.labels.names))
    else:
        labels = _pseudo_labels(method, store, split, count=settings.images, seed=seed, device=target)
    seeds = np.array([derive(seed, "generate", i) for i in range(settings.images)], dtype=np.int64)
    drawn, started = [], time.perf_counter()
    with Progress("generate", total=settings.images, unit="images") as progress:
        for start in range(0, settings.images, settings.batch_size):
            part = slice(start, start + settings.batch_size)
            batch = method.sample(
                torch.from_numpy(labels[part]).to(target),
                torch.from_numpy(seeds[part]).to(target),
                steps=settings.steps,
                sampler=settings.sampler,
                guidance=settings.guidance,
            )
            drawn.append(to_bytes(batch).permute(0, 2, 3, 1).cpu().numpy())
            progress.advance(len(batch))
    cost = {
        "ms_per_sample": 1000.0 * (time.perf_counter() - started) / settings.images,
        "calls_per_sample": settings.steps * method.calls_per_step(settings.guidance),
    }
    protocol = {key: getattr(settings, key) for key in ("sampler", "steps", "guidance", "labels")}
    images = np.concatenate(drawn)
    said = answers(method.predict, images, np.arange(len(images)), batch_size=settings.batch_size, device=target)
    with atomic_path(out) as aside:
        np.savez(
            aside,
            images=images,
            labels=labels,
            predicted=said,
            seeds=seeds,
            protocol=json.dumps(protocol),
            cost=json.dumps(cost),
        )
    _draw_grid(images, labels, info, Path(picture), settings)


def _pseudo_labels(
    method: Method,
    store: Path | str | None,
    split: Path | str | None,
    *,
    count: int,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Return what a model says of ``count`` unlabelled images, as hard labels (count, K)."""
    if store is None or split is None:
        raise ConfigError("generation.labels: 'pseudo' needs a data set whose unlabelled images it can ask about")
    data = open_store(store)
    roles = data.split_rows(split)
    pool = roles["unlabelled"] if len(roles["unlabelled"]) else roles["labelled"]
    chosen = rng(seed, "pseudo-labels").choice(pool, size=count, replace=count > len(pool))
    with torch.no_grad():
        asked = image_batches(data.images, chosen, batch_size=256, device=device)
        said = torch.cat([method.predict(images) for images in asked])
    # Rounded probabilities are hard labels; of classes exactly one is the greatest.
    if data.info.labels.kind == "one_of_k":
        return torch.nn.functional.one_hot(said.argmax(1), said.shape[1]).float().cpu().numpy()
    return said.round().float().cpu().numpy()


def _draw_grid(images: np.ndarray, labels: np.ndarray, info: DataInfo, path: Path, settings: Generation) -> None:
    """Draw up to ten images a row; a row is a class, or no finding, each finding alone, and several."""
    names = list(info.labels.names)
    if info.labels.kind == "one_of_k":
        row_of, rows = labels.argmax(axis=1), names
    else:
        several = labels.sum(axis=1) > 1
        row_of = np.where(several, len(names) + 1, (labels > 0).any(axis=1) * (1 + labels.argmax(axis=1)))
        rows = ["none", *names, "several"]
    members = [np.flatnonzero(row_of == row)[:10] for row in range(len(rows))]
    shown = [(name, member) for name, member in zip(rows, members, strict=True) if len(member)]
    per_row = max(len(member) for _, member in shown)
    blank = np.full_like(images[0], 255)
    grid = [images[member[i]] if i < len(member) else blank for _, member in shown for i in range(per_row)]
    title = f"{info.title}: {settings.sampler}, {settings.steps} steps, guidance {settings.guidance:g}"
    save_grid(np.stack(grid), path, rows=[name for name, _ in shown], per_row=per_row, title=title)


def explain(
    model: Path | str,
    *,
    store: Path | str,
    split: Path | str,
    out: Path | str,
    picture: Path | str,
    explainers: Sequence[str],
    seed: int,
    settings: Explanation,
    judge: Path | str | None = None,
    device: str = "auto",
) -> None:
    """Explain findings of test images by each of ``explainers`` and write maps, edits and probabilities.

    Every method of a seed explains the same images. Where the data set marks no regions, the maps are written all the
    same and the regions stay empty. Counterfactuals also put findings into images without them, as the settings ask;
    the arrays of these are named "enforced:...".

    Raises:
        ConfigError: the model has no way to give one of the explanations.
    """
    data, target = open_store(store), pick_device(device)
    method = load_model(model).to(target)
    umpire = load_model(judge).to(target) if judge is not None else None
    _check_explainers(method, explainers)
    cases = _cases(data, split, seed=seed, at_most=settings.images_per_finding)
    names = data.info.labels.names
    regions = [data.regions(int(row), names[k]) for row, k in zip(cases.rows, cases.findings, strict=True)]
    nowhere = np.zeros((data.info.size, data.info.size), dtype=bool)
    found = {**cases.arrays(data), "region": np.stack([nowhere if region is None else region for region in regions])}
    protocol: dict[str, Any] = {"explainers": list(explainers)}
    cost: dict[str, float] = {}
    if "random_map" in explainers:
        found["map:random_map"] = random_map(cases.seeds, data.info.size)
    if "centre_prior" in explainers:
        found["map:centre_prior"] = centre_prior(len(cases.rows), data.info.size)
    if "grad_cam" in explainers and isinstance(method, HasFeatures):
        maps = np.zeros((len(cases.rows), data.info.size, data.info.size), dtype=np.float32)
        for part, images in _by_finding(data, cases, settings.batch_size, target):
            maps[part] = grad_cam(method, images, int(cases.findings[part[0]])).cpu().numpy()
        found["map:grad_cam"] = maps
    if "counterfactual" in explainers:
        edits, cost = _counterfactuals(method, umpire, data, cases, settings, target)
        found |= edits
        healthy = _healthy(data, split, cases, seed=seed, at_most=settings.healthy_per_finding)
        if len(healthy.rows):
            edits, _ = _counterfactuals(method, umpire, data, healthy, settings, target)
            found |= {f"{ENFORCED}{name}": values for name, values in (healthy.arrays(data) | edits).items()}
        protocol |= settings.model_dump(exclude={"images_per_finding", "healthy_per_finding", "batch_size"})
    with atomic_path(out) as aside:
        np.savez(aside, allow_pickle=False, **found, protocol=json.dumps(protocol), cost=json.dumps(cost))
    _draw(found, names, Path(picture), title=f"{data.info.title}: {', '.join(explainers).replace('_', ' ')}")


def _check_explainers(method: Method, explainers: Sequence[str]) -> None:
    needs: dict[str, type] = {"counterfactual": Explainer, "grad_cam": HasFeatures}
    for explainer in explainers:
        if not isinstance(method, needs.get(explainer, Method)):
            raise ConfigError(
                f"methods: {type(method).__name__} cannot give {explainer!r}; remove it from this method's explain list"
            )


@dataclass(frozen=True)
class _Cases:
    """Test images, each with a finding that is there and to be taken out (target 0), or not there and to be put in."""

    rows: np.ndarray
    findings: np.ndarray
    seeds: np.ndarray
    target: float

    @classmethod
    def chosen(cls, pools: dict[int, np.ndarray], *, seed: int, target: float) -> _Cases:
        rows = np.concatenate([np.zeros(0, np.int64), *pools.values()])
        findings = np.repeat(np.array(list(pools), dtype=np.int64), [len(pool) for pool in pools.values()])
        # The case decides the seed, so that neither batch size nor order changes an answer.
        seeds = [derive(seed, "explain", int(row), int(k)) for row, k in zip(rows, findings, strict=True)]
        return cls(rows, findings, np.array(seeds, dtype=np.int64), target)

    def arrays(self, data: Store) -> dict[str, np.ndarray]:
        """Return what an archive says of the cases themselves."""
        return {
            "sample": self.rows,
            "group": data.groups[self.rows].astype(str),  # intervals are over patients
            "finding": self.findings,
            "image": data.images[self.rows],
        }


def _cases(data: Store, split: Path | str, *, seed: int, at_most: int) -> _Cases:
    """Choose test images with each finding, and with its region where the set has regions."""
    test = data.split_rows(split)["test"]
    pools = {}
    for k, name in enumerate(data.info.labels.names):
        pool = test[data.labels[test, k] == 1]
        if data.info.has_regions:
            pool = np.array([row for row in pool if data.regions(int(row), name) is not None], dtype=np.int64)
        pools[k] = np.sort(rng(seed, "explain", name).permutation(pool)[:at_most])
    if not sum(map(len, pools.values())):
        raise ConfigError(
            f"{data.info.name}: no test image has a finding to explain; raise datasets.{data.info.name}.test"
        )
    return _Cases.chosen(pools, seed=seed, target=0.0)


def _healthy(data: Store, split: Path | str, cases: _Cases, *, seed: int, at_most: int) -> _Cases:
    """Choose test images without a finding, for each finding of ``cases``: a class that marks nothing is none."""
    test = data.split_rows(split)["test"]
    pools = {}
    for k in np.unique(cases.findings).tolist():
        pool = test[data.labels[test, k] == 0]
        pools[k] = np.sort(rng(seed, "enforce", data.info.labels.names[k]).permutation(pool)[:at_most])
    return _Cases.chosen(pools, seed=seed, target=1.0)


def _by_finding(
    data: Store, cases: _Cases, batch_size: int, device: torch.device
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield places and images of cases of one finding at a time."""
    for k in np.unique(cases.findings):
        places = np.flatnonzero(cases.findings == k)
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            (images,) = image_batches(data.images, cases.rows[part], batch_size=batch_size, device=device)
            yield part, images


def _counterfactuals(
    method: Any,
    umpire: Method | None,
    data: Store,
    cases: _Cases,
    settings: Explanation,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    size, channels, outputs = data.info.size, data.info.channels, len(data.info.labels.names)
    count = len(cases.rows)
    found = {
        name: np.zeros((count, size, size), np.float32)
        for name in ("map:counterfactual", "map:counterfactual_control", "spread")
    }
    found |= {name: np.zeros((count, size, size, channels), np.uint8) for name in ("counterfactual", "control")}
    found |= {name: np.zeros((count, outputs), np.float32) for name in ("before", "after")}
    judges: dict[str, Callable[[Tensor], Tensor]] = {"": method.predict}
    if umpire is not None:
        judges["judge_"] = umpire.predict
        judged = ("judge_before", "judge_after", "judge_control")
        found |= {name: np.zeros((count, outputs), np.float32) for name in judged}
    calls, started = 0, time.perf_counter()
    with Progress("counterfactuals", total=count, unit="images") as progress:
        for part, images in _by_finding(data, cases, settings.batch_size, device):
            finding, seeds = int(cases.findings[part[0]]), torch.from_numpy(cases.seeds[part]).to(device)
            answer = method.counterfactual(images, finding, cases.target, seeds, how=settings)
            calls, edited, control = answer.calls, answer.images, answer.control
            found["map:counterfactual"][part] = change_map(edited, images).cpu().numpy()
            found["map:counterfactual_control"][part] = change_map(edited, control).cpu().numpy()
            found["spread"][part] = answer.spread.cpu().numpy()
            for name, values in {"counterfactual": edited, "control": control}.items():
                found[name][part] = to_bytes(values).permute(0, 2, 3, 1).cpu().numpy()
            with torch.no_grad():
                for prefix, predict in judges.items():
                    found[f"{prefix}before"][part] = predict(images).cpu().numpy()
                    found[f"{prefix}after"][part] = predict(edited).cpu().numpy()
                if umpire is not None:
                    found["judge_control"][part] = umpire.predict(control).cpu().numpy()
            progress.advance(len(part))
    return found, {
        "ms_per_counterfactual": 1000.0 * (time.perf_counter() - started) / count,
        "calls_per_counterfactual": calls,
    }


def _draw(found: dict[str, np.ndarray], names: Sequence[str], path: Path, *, title: str, per_finding: int = 3) -> None:
    """Draw a few cases of each finding: image, edit, control and maps, with the region outlined; enforced ones last."""
    enforced = {key.removeprefix(ENFORCED): values for key, values in found.items() if key.startswith(ENFORCED)}
    titles = {
        "image": "image",
        "counterfactual": "edited" if enforced else "without finding",
        "control": "control",
        "map:counterfactual": "change",
        "map:counterfactual_control": "change less control",
        "spread": "spread over noises",
        "map:grad_cam": "Grad-CAM",
        "map:random_map": "random map",
        "map:centre_prior": "centre prior",
    }
    pictures: dict[str, list[np.ndarray]] = {key: [] for key in (*titles, "region") if key in found}
    rows: list[str] = []
    for arrays, sign in ((found, ""), (enforced, "+ ")):
        if not arrays:
            continue
        finding = arrays["finding"]
        shown = np.concatenate([np.flatnonzero(finding == k)[:per_finding] for k in np.unique(finding)])
        rows += [f"{sign}{names[k]}" for k in finding[shown]]
        for key, parts in pictures.items():
            # What only images with the finding have, a region or another explainer's map, stays empty elsewhere.
            blank = np.zeros((len(finding), *found[key].shape[1:]), found[key].dtype)
            parts.append(arrays.get(key, blank)[shown])
    columns = {key: np.concatenate(parts) for key, parts in pictures.items()}
    regions = columns.pop("region")
    save_strips({titles[key]: images for key, images in columns.items()}, regions, path, rows=rows, title=title)
