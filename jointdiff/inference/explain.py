"""Maps and edits of findings: where a model sees them, and what its images look like without or with them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jointdiff.batches import answers, image_batches
from jointdiff.config import ConfigError, Explanation
from jointdiff.data.store import Store, open_store
from jointdiff.devices import pick_device
from jointdiff.environment import environment
from jointdiff.explain.archive import CHANGE_MAPS, ENFORCED, FEATURES, INSERTION
from jointdiff.explain.insertion import insertion_path
from jointdiff.explain.saliency import SALIENCY, centre_prior, change_map, random_map
from jointdiff.files import atomic_path, read_json, sha256
from jointdiff.method import Explainer, HasFeatures, Method, Voter, to_bytes
from jointdiff.models import load_model
from jointdiff.nets.perceptual import Perceptual
from jointdiff.pictures import save_strips
from jointdiff.processes import join_group, share_out
from jointdiff.progress import Progress
from jointdiff.seeding import derive, rng

INSERTIONS = 10  # steps in which the pixels of an edit are put into its image
MOST_CASES = 12  # in a picture that is read on one page; of few findings, three each


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
    perceptual: Path | str | None = None,
    device: str = "auto",
) -> None:
    """Explain findings of test images by each of ``explainers`` and write maps, edits and probabilities.

    Every method of a seed explains the same images. Where the data set marks no regions, the maps are written all the
    same and the regions stay empty. Counterfactuals also put findings into images without them, as the settings ask;
    the arrays of these are named "enforced:...". The processes of a job share out the batches.

    Raises:
        ConfigError: the model has no way to give one of the explanations.
        ValueError: the file of LPIPS weights does not fit.
    """
    data, group = open_store(store), join_group(pick_device(device))
    target = group.device
    # Gradients are asked for on images and maps alone.
    method = load_model(model).to(target).requires_grad_(False)
    umpire = load_model(judge).to(target).requires_grad_(False) if judge is not None else None
    _check_explainers(method, explainers)
    cases = _cases(data, split, seed=seed, at_most=settings.images_per_finding)
    names = data.info.labels.names
    regions = [data.regions(int(row), names[k]) for row, k in zip(cases.rows, cases.findings, strict=True)]
    nowhere = np.zeros((data.info.size, data.info.size), dtype=bool)
    found = {**cases.arrays(data), "region": np.stack([nowhere if region is None else region for region in regions])}
    protocol: dict[str, Any] = {"explainers": list(explainers)}
    cost: dict[str, Any] = {"ms_per_map": {}, "calls_per_map": {}}
    if "random_map" in explainers:
        found["map:random_map"] = random_map(cases.seeds, data.info.size)
    if "centre_prior" in explainers:
        found["map:centre_prior"] = centre_prior(len(cases.rows), data.info.size)
    for name in SALIENCY:
        if name in explainers:
            found[f"map:{name}"], ms, calls = _saliency(name, method, data, cases, settings.batch_size, target)
            cost["ms_per_map"][name], cost["calls_per_map"][name] = ms, calls
    if "counterfactual" in explainers:
        edits, of_edits = _counterfactuals(method, umpire, data, cases, settings, target)
        found, cost = found | edits, cost | of_edits
        for name in CHANGE_MAPS:  # each is there once the image is edited
            cost["ms_per_map"][name] = of_edits["ms_per_counterfactual"]
            cost["calls_per_map"][name] = of_edits["calls_per_counterfactual"]
        if judge is not None:
            protocol["judge"] = read_json(Path(judge) / "config.json")["run"]["variant"]
        if perceptual is not None:
            lpips = Perceptual(perceptual).to(target)
            protocol["perceptual"] = sha256(perceptual)[:16]
            found["lpips"] = _apart(lpips, found["image"], found["counterfactual"], settings.batch_size, target)
        if isinstance(umpire, HasFeatures):
            found |= _seen_by_judge(umpire, data, split, found, settings.batch_size, target)
        healthy = _healthy(data, split, cases, seed=seed, at_most=settings.healthy_per_finding)
        if len(healthy.rows):
            edits, _ = _counterfactuals(method, umpire, data, healthy, settings, target)
            found |= {f"{ENFORCED}{name}": values for name, values in (healthy.arrays(data) | edits).items()}
        protocol |= settings.model_dump(exclude={"images_per_finding", "healthy_per_finding", "batch_size"})
    if not group.is_main_process:
        return
    with atomic_path(out) as aside:
        about = {"protocol": protocol, "cost": cost, "environment": environment()}
        np.savez(aside, allow_pickle=False, **found, **{name: json.dumps(facts) for name, facts in about.items()})
    _draw(found, names, Path(picture), title=data.info.title)


def _check_explainers(method: Method, explainers: Sequence[str]) -> None:
    needs = {"counterfactual": Explainer} | {name: saliency.needs for name, saliency in SALIENCY.items()}
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


def _by_finding(cases: _Cases, batch_size: int) -> list[np.ndarray]:
    """Return the places of cases in batches, each of one finding."""
    every = (np.flatnonzero(cases.findings == k) for k in np.unique(cases.findings))
    return [part for places in every for part in np.split(places, range(batch_size, len(places), batch_size))]


def _images(data: Store, cases: _Cases, part: np.ndarray, device: torch.device) -> Tensor:
    (images,) = image_batches(data.images, cases.rows[part], batch_size=len(part), device=device)
    return images


def _placed(parts: Sequence[np.ndarray], found: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Put the arrays of each part at its places in arrays of all cases."""
    order = np.argsort(np.concatenate(parts))
    return {name: np.concatenate([arrays[name] for arrays in found])[order] for name in found[0]}


@dataclass
class _Counted:
    """A classifier that counts the images about which it is asked."""

    method: Any
    asked: int = 0

    def image_logits(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.method.image_logits(images)

    def feature_layer(self) -> nn.Module:
        return self.method.feature_layer()


def _saliency(
    name: str, method: Method, data: Store, cases: _Cases, batch_size: int, device: torch.device
) -> tuple[np.ndarray, float, float]:
    """Return maps (M, size, size), and the milliseconds and network calls that one takes."""
    import captum.attr  # noqa: F401 - now, since the seconds that this takes are no cost of a map

    counted, parts = _Counted(method), _by_finding(cases, batch_size)

    def draw(part: np.ndarray) -> tuple[dict[str, np.ndarray], float, int]:
        images, asked, started = _images(data, cases, part, device), counted.asked, time.perf_counter()
        maps = SALIENCY[name].draw(counted, images, int(cases.findings[part[0]])).float().cpu().numpy()
        return {"maps": maps}, time.perf_counter() - started, counted.asked - asked

    found, seconds, asked = zip(*share_out(draw, parts, device=device), strict=True)
    count = len(cases.rows)
    return _placed(parts, found)["maps"], 1000.0 * sum(seconds) / count, sum(asked) / count


def _apart(lpips: Perceptual, a: np.ndarray, b: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Return the LPIPS between uint8 images (M, H, W, C) and others, (M,)."""
    every = np.arange(len(a))
    pairs = (image_batches(images, every, batch_size=batch_size, device=device) for images in (a, b))
    with torch.no_grad():
        return torch.cat([lpips(*pair) for pair in zip(*pairs, strict=True)]).cpu().numpy()


def _seen_by_judge(
    umpire: HasFeatures, data: Store, split: Path | str, found: Mapping[str, np.ndarray], batch_size: int, device: Any
) -> dict[str, np.ndarray]:
    """Return the judge's features (n, D) of edits, their controls and originals, and of every real test image."""
    test = data.split_rows(split)["test"]
    shown = {name: (found[name], np.arange(len(found[name]))) for name in ("image", "control", "counterfactual")}
    shown["test"] = (data.images, test)
    return {
        f"{FEATURES}{name}": answers(umpire.features, pixels, rows, batch_size=batch_size, device=device)
        for name, (pixels, rows) in shown.items()
    }


def _counterfactuals(
    method: Any,
    umpire: Method | None,
    data: Store,
    cases: _Cases,
    settings: Explanation,
    device: torch.device,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    judges: dict[str, Callable[[Tensor], Tensor]] = {"": method.predict}
    if umpire is not None:
        judges["judge_"] = umpire.predict
    # On the way to an edit that removes: each step asks anew, which of a method that votes takes too long.
    paths: dict[str, Callable[[Tensor], Tensor]] = {}
    if cases.target == 0.0:
        paths |= {} if isinstance(method, Voter) else {"": method.predict}
        paths |= {} if umpire is None else {"judge_": umpire.predict, "control_": umpire.predict}
    count, group = len(cases.rows), join_group(device)
    with Progress(
        "counterfactuals",
        total=count,
        unit="images",
        silent=not group.is_main_process,
        times=group.num_processes,
    ) as progress:

        def show(part: np.ndarray) -> tuple[dict[str, np.ndarray], float, int]:
            images, finding = _images(data, cases, part, device), int(cases.findings[part[0]])
            seeds, started = torch.from_numpy(cases.seeds[part]).to(device), time.perf_counter()
            answer = method.counterfactual(images, finding, cases.target, seeds, how=settings)
            spread = answer.spread.float().cpu().numpy()  # with which a GPU has finished
            seconds = time.perf_counter() - started
            edited, control = answer.images, answer.control
            found: dict[str, Tensor] = {
                "map:counterfactual": change_map(edited, images),
                "map:counterfactual_control": change_map(edited, control),
            }
            with torch.no_grad():
                for prefix, predict in judges.items():
                    found |= {f"{prefix}before": predict(images), f"{prefix}after": predict(edited)}
                if umpire is not None:
                    found["judge_control"] = umpire.predict(control)
                for who, predict in paths.items():
                    other = control if who == "control_" else edited
                    found[f"{who}{INSERTION}"] = insertion_path(
                        predict, images, other, finding=finding, steps=INSERTIONS
                    )
            shown = {name: values.float().cpu().numpy() for name, values in found.items()} | {"spread": spread}
            for name, values in {"counterfactual": edited, "control": control}.items():
                shown[name] = to_bytes(values).permute(0, 2, 3, 1).cpu().numpy()
            progress.advance(len(part))
            return shown, seconds, answer.calls

        parts = _by_finding(cases, settings.batch_size)
        found, seconds, calls = zip(*share_out(show, parts, device=device), strict=True)
    return _placed(parts, found), {
        "ms_per_counterfactual": 1000.0 * sum(seconds) / count,
        "calls_per_counterfactual": calls[-1],
    }


def _draw(found: dict[str, np.ndarray], names: Sequence[str], path: Path, *, title: str) -> None:
    """Draw a few cases of each finding: image, edit, control and maps, with the region outlined; enforced ones last."""
    enforced = {key.removeprefix(ENFORCED): values for key, values in found.items() if key.startswith(ENFORCED)}
    per_finding = max(1, min(3, MOST_CASES // (len(names) * (2 if enforced else 1))))
    titles = {
        "image": "image",
        "counterfactual": "edited" if enforced else "without finding",
        "control": "control",
        "map:counterfactual": "change",
        "map:counterfactual_control": "change less control",
        "spread": "spread over noises",
        "map:grad_cam": "Grad-CAM",
        "map:grad_cam_plus_plus": "Grad-CAM++",
        "map:integrated_gradients": "integrated gradients",
        "map:occlusion": "occlusion",
        "map:random_map": "random map",
        "map:centre_prior": "centre prior",
    }
    if not found.get("spread", np.zeros(0)).any():
        del titles["spread"]  # of a single noise
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
            nothing = math.nan if key.startswith("map:") else 0
            blank = np.full((len(finding), *found[key].shape[1:]), nothing, found[key].dtype)
            parts.append(arrays.get(key, blank)[shown])
    columns = {key: np.concatenate(parts) for key, parts in pictures.items()}
    regions = columns.pop("region")
    save_strips({titles[key]: images for key, images in columns.items()}, regions, path, rows=rows, title=title)
