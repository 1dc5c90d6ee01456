"""A trained model and images at hand: its predictions, explanations and samples as tables and pictures."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdiff.batches import answers, image_batches
from jointdiff.config import ConfigError, Explanation, Generation, Voting
from jointdiff.data.images import Fit, decode_image
from jointdiff.data.own.files import Files, read_bounded
from jointdiff.data.own.inspection import IMAGES
from jointdiff.data.source import DataError
from jointdiff.devices import pick_device
from jointdiff.evaluate.scores import write_csv
from jointdiff.evaluate.voting import entropy, fixed
from jointdiff.explain.saliency import change_map, grad_cam
from jointdiff.files import atomic_path, read_json
from jointdiff.inference.generate import generate
from jointdiff.method import Explainer, Generator, HasMaps, Method, Voter, to_bytes
from jointdiff.models import load_model
from jointdiff.pictures import save_overlay
from jointdiff.progress import Progress
from jointdiff.registry import load_method, methods
from jointdiff.seeding import derive
from jointdiff.trials import hold_trials

PRESENT = 0.5  # a finding is said to be there from this probability on
CHANGED = 0.05  # share of the pixel range above which a pixel counts as changed


@dataclass(frozen=True)
class Answers:
    """A table about images, what it comes to in a line, and a message for each file that is not in it."""

    header: tuple[str, ...]
    lines: list[list[Any]]
    summary: str
    unreadable: list[str]

    def write(self, path: Path) -> None:
        """Write the table as CSV."""
        write_csv(path, self.header, self.lines)


# --- Images -----------------------------------------------------------------------------------------------------------


def list_images(paths: Sequence[Path], *, skip: Path | None = None) -> list[Path]:
    """List each file once: files as they are named, and all images below folders, sorted, but not those in ``skip``.

    Raises:
        ConfigError: the only one is a folder that holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - which no name is too long for
            found.append(path)  # whether it is there, and an image, is seen when it is read
            continue
        files = Files(path)
        below = [path / name for name in sorted(files) if name.lower().endswith(IMAGES)]
        if skip is not None:  # pictures of an earlier call
            below = [file for file in below if not file.parent.resolve().is_relative_to(skip.resolve())]
        if not below and len(paths) == 1:
            raise ConfigError(f"{path} holds no images ({', '.join(IMAGES)}); name files of other endings themselves")
        found += below or [path]  # of several, one without images is told of as a file that cannot be read is
        found += [path / folder for folder in files.unlisted]
    return list(dict.fromkeys(found))


class _Reader:
    """Reads a user's files as the data of a model were read; those that it cannot read end in ``unreadable``."""

    def __init__(self, model: Path, method: Method) -> None:
        self.data = method.data
        # How deep images become 8 bits is an option of the data set, which the model's run remembers.
        self.window = read_json(model / "config.json")["run"].get("options", {}).get("window", "auto")
        self.unreadable: list[str] = []

    def batches(self, files: Sequence[Path], *, label: str, size: int) -> Iterator[tuple[list[Path], np.ndarray]]:
        """Yield files and their images, uint8 (n, side, side, C), and say how far the work is."""
        with Progress(label, total=len(files), unit="images") as progress:
            for start in range(0, len(files), size):
                read = {
                    file: pixels for file in files[start : start + size] if (pixels := self._read(file)) is not None
                }
                if read:
                    yield list(read), np.stack(list(read.values()))
                progress.advance(len(files[start : start + size]))

    def _read(self, file: Path) -> np.ndarray | None:
        mode = "L" if self.data.channels == 1 else "RGB"
        try:
            pixels = decode_image(read_bounded(file), name=str(file), mode=mode, window=self.window)
        except DataError as error:
            self.unreadable.append(str(error))
            return None
        height, width = pixels.shape[:2]
        return Fit(height, width, self.data.size, self.data.resize).image(pixels)


def _shown(file: Path) -> str:
    r"""Return a path as text; bytes that are no UTF-8 are written out, as \xff."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _content(pixels: np.ndarray) -> str:
    """Name an image by its content, from which seeds come: neither its place nor its file's name changes an answer."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


# --- Prediction -------------------------------------------------------------------------------------------------------


def predict_images(
    model: Path, files: Sequence[Path], *, voting: Voting, device: str = "auto", batch_size: int = 64
) -> Answers:
    """Return the probabilities of images, the classes or findings that they stand for, and the uncertainty in [0, 1].

    Uncertainty is the entropy of the classes over log K, or the mean over findings of that of absence and presence over
    log 2. A diffusion classifier holds trials as ``voting`` says and answers with their votes.
    """
    target = pick_device(device)
    method = load_model(model).to(target)
    reader, labels, votes = _Reader(model, method), method.data.labels, isinstance(method, Voter)
    lines: list[list[Any]] = []
    for part, pixels in reader.batches(files, label="predict", size=batch_size):
        scores = _votes(method, pixels, voting, target) if votes else _probabilities(method, pixels, target)
        calls = [[voting.trials * method.task.conditions]] * len(part) if votes else [[]] * len(part)
        said = [_said(row, method) for row in scores]
        unsure = entropy(scores, kind=labels.kind)
        for file, row, names, doubt, cost in zip(part, scores, said, unsure, calls, strict=True):
            lines.append([_shown(file), *map(_number, row), names, _number(doubt), *cost])
    scored = [f"probability:{name}" for name in labels.names]
    header = ("image", *scored, "prediction", "uncertainty", *(["calls"] if votes else []))
    counts = Counter(line[len(scored) + 1] or "no finding" for line in lines)
    doubts = [line[len(scored) + 2] for line in lines]
    mean = f"; mean uncertainty {np.mean(doubts):.2f}" if doubts else ""
    told = ", ".join(f"{names} {count}" for names, count in counts.most_common(5))
    rest = f", {len(counts) - 5} other combinations" if len(counts) > 5 else ""
    return Answers(header, lines, f"{_counted(lines)}: {told}{rest}{mean}", reader.unreadable)


def _probabilities(method: Method, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    return answers(method.predict, pixels, np.arange(len(pixels)), batch_size=len(pixels), device=device)


def _votes(method: Method, pixels: np.ndarray, voting: Voting, device: torch.device) -> np.ndarray:
    seeds = np.array([derive(0, "votes", _content(image)) for image in pixels])
    (images,) = image_batches(pixels, np.arange(len(pixels)), batch_size=len(pixels), device=device)
    errors = hold_trials(method, images, seeds, voting=voting).errors
    kind = method.data.labels.kind
    return fixed(errors, method.task.contests, kind=kind, rule=voting.rule, trials=voting.trials).probabilities


def _said(probabilities: np.ndarray, method: Method) -> str:
    """Return the most probable class, or the findings that are there."""
    names = method.data.labels.names
    if method.data.labels.kind == "one_of_k":
        return names[int(probabilities.argmax())]
    return ";".join(names[k] for k in np.flatnonzero(probabilities >= PRESENT))


def _number(value: float) -> float:
    """Round to seven digits: a float32 holds no more, and a vote that breaks a tie shows."""
    return float(f"{value:.7g}")


def _counted(lines: Collection[Any]) -> str:
    return f"{len(lines):,} image{'' if len(lines) == 1 else 's'}"


# --- Explanation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """What is said of one finding of one image."""

    finding: int
    map: np.ndarray  # (H, W) float32: share of the pixel range, or Grad-CAM in its own unit
    before: np.ndarray  # (K,) probabilities
    calls: int
    after: np.ndarray | None = None  # (K,) and the rest: of an edit alone
    control: float = float("nan")  # probability after the same steps without guidance
    edited: np.ndarray | None = None  # (H, W, C) uint8
    spread: float = float("nan")


EXPLANATION = (
    *("image", "picture", "explainer", "finding", "probability_before", "probability_after", "probability_control"),
    *("side_effect", "share_changed", "max_change", "max_change_x", "max_change_y", "calls", "spread"),
)


def explain_images(
    model: Path,
    files: Sequence[Path],
    *,
    out: Path,
    how: Explanation,
    finding: str | None = None,
    enforce: bool = False,
    seed: int = 0,
    arrays: bool = False,
    device: str = "auto",
) -> Answers:
    """Remove findings from images (or add one), draw what changes over each and write the table to ``out``.

    Without ``finding`` it is the most probable class, or every finding that is there, else the most probable one. A
    classifier that edits nothing is explained by Grad-CAM. Places in the table are in pixels of the model's size.
    ``arrays`` keeps the maps and edits behind each picture in an .npz beside it.

    Raises:
        ConfigError: the model knows no such finding, or cannot explain what is asked.
    """
    target = pick_device(device)
    method: Any = load_model(model).to(target)
    names = method.data.labels.names
    if enforce and finding is None:
        raise ConfigError("to add a finding, say which with --finding")
    chosen = None if finding is None else find_labels([finding], names)
    edits = isinstance(method, Explainer)
    if enforce and not edits:
        raise _unable(model, method, "add a finding", Explainer)
    if not edits and not isinstance(method, HasMaps):
        raise _unable(model, method, "explain an image", Explainer, HasMaps)
    explainer, scale = (
        ("counterfactual", "change less control (share of the range)") if edits else ("grad_cam", "Grad-CAM")
    )
    reader, lines, taken = _Reader(model, method), list[list[Any]](), set[str]()
    for (file,), pixels in reader.batches(files, label="explain", size=1):
        (before,) = _probabilities(method, pixels, target)
        findings = chosen if chosen is not None else _findings(before, method)
        (image,) = image_batches(pixels, np.arange(1), batch_size=1, device=target)
        if edits:
            seeds = torch.tensor([derive(seed, "explain", _content(pixels))], device=target)
            wish = 1.0 if enforce else 0.0
            cases = [_edit(method, image, before, k, wish, seeds, how) for k in findings]
        else:
            cases = [_Case(k, grad_cam(method, image, k)[0].cpu().numpy(), before, calls=1) for k in findings]
        picture = _free_name(file, taken)
        captions = [_caption(case, names) for case in cases]
        columns = {"image": np.repeat(pixels, len(cases), axis=0)}
        if edited := [case.edited for case in cases if case.edited is not None]:
            columns["with finding" if enforce else "without finding"] = np.stack(edited)
        maps = np.stack([case.map for case in cases])
        # A map of nothing but rounding is not to light up.
        least = CHANGED if edits else 0.0
        save_overlay(columns, maps, out / picture, rows=captions, title=_shown(file), scale=scale, least=least)
        if arrays:
            with atomic_path((out / picture).with_suffix(".npz")) as aside:
                np.savez(aside, allow_pickle=False, map=maps, finding=np.array(findings), **columns)
        lines += [[_shown(file), picture, explainer, *_described(case, names)] for case in cases]
    summary = f"{_counted({line[0] for line in lines})}, {len(lines):,} findings explained by {explainer}"
    return Answers(EXPLANATION, lines, summary, reader.unreadable)


def split_labels(text: str, names: Sequence[str]) -> list[str]:
    """Return the labels that a text names: itself if a model knows it, else what stands between its commas.

    Raises:
        ConfigError: a double quote is not closed.
    """
    if text.strip() in names:
        return [text.strip()]
    try:
        (labels,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        example = "'\"Edema, mild\",nodule'"
        raise ConfigError(f"{text!r} is no list of labels ({error}); write them as in {example}") from None
    return [label.strip() for label in labels]


def find_labels(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the places of labels among a model's.

    Raises:
        ConfigError: the model does not know one of them, with the nearest that it knows.
    """
    for name in wanted:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            commas = "; a name with a comma in it stands in double quotes" if any("," in each for each in names) else ""
            raise ConfigError(f"{name!r} is nothing that this model knows: {hint}It knows: {', '.join(names)}{commas}")
    return [list(names).index(name) for name in wanted]


def _unable(model: Path, method: Method, task: str, *contracts: type) -> ConfigError:
    able = [name for name in methods() if issubclass(load_method(name), contracts)]
    return ConfigError(f"{model}: {type(method).__name__} cannot {task}; these methods can: {', '.join(able)}")


def _findings(probabilities: np.ndarray, method: Method) -> list[int]:
    """Return the most probable class, or the findings that are there, else the most probable one."""
    present = np.flatnonzero(probabilities >= PRESENT)
    if method.data.labels.kind == "one_of_k" or not len(present):
        return [int(probabilities.argmax())]
    return present.tolist()


def _edit(
    method: Any, image: Tensor, before: np.ndarray, finding: int, wish: float, seeds: Tensor, how: Explanation
) -> _Case:
    answer = method.counterfactual(image, finding, wish, seeds, how=how)
    with torch.no_grad():
        after, control = method.predict(torch.cat([answer.images, answer.control])).float().cpu().numpy()
    change = change_map(answer.images, answer.control)[0].cpu().numpy()
    # One draw, or one way backwards, has nothing to differ from.
    several = how.noises > 1 and how.start == "noise"
    return _Case(
        finding,
        change,
        before,
        calls=answer.calls,
        after=after,
        control=float(control[finding]),
        edited=to_bytes(answer.images)[0].permute(1, 2, 0).cpu().numpy(),
        spread=float(answer.spread.mean()) if several else float("nan"),
    )


def _caption(case: _Case, names: Sequence[str]) -> str:
    text = f"{names[case.finding]}: probability {case.before[case.finding]:.2f}"
    if case.after is None:
        return text
    return f"{text} before, {case.after[case.finding]:.2f} after, {case.control:.2f} by rebuilding alone"


def _described(case: _Case, names: Sequence[str]) -> list[Any]:
    """Return what the table says of a case after its picture."""
    k = case.finding
    y, x = np.unravel_index(case.map.argmax(), case.map.shape)
    most = [_number(case.map.max()), int(x), int(y)]
    if case.after is None:
        return [names[k], _number(case.before[k]), None, None, None, None, *most, case.calls, None]
    others = np.arange(len(names)) != k
    side = np.abs(case.after - case.before)[others].mean() if others.any() else float("nan")
    changed = (case.map > CHANGED).mean()
    probabilities = [_number(value) for value in (case.before[k], case.after[k], case.control)]
    return [names[k], *probabilities, _number(side), _number(changed), *most, case.calls, _number(case.spread)]


def _free_name(file: Path, taken: set[str]) -> str:
    """Return a name for an image's picture that no other image has, nor one of other case: some disks see none."""
    # Bytes that are no UTF-8 are written out, and room is left for a number.
    stem, number = _shown(Path(file.stem)).encode()[:240].decode("utf-8", "ignore"), 1
    name = f"{stem}.png"
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name.casefold())
    return name


# --- Generation -------------------------------------------------------------------------------------------------------


def sample_images(
    model: Path,
    *,
    out: Path,
    settings: Generation,
    labels: Sequence[str] | str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Answers:
    """Draw images for ``labels`` in turn, each alone, and write archive, grid, each image and a table to ``out``.

    ``labels`` as one text are separated by commas; a label that has one stands in double quotes, or alone.
    Without ``labels`` it is every class, or no finding and then each finding, as in an experiment, and the images are
    the same as there. The table holds what the model itself says of each image.

    Raises:
        ConfigError: the model cannot generate or knows no such label.
    """
    method = load_model(model)
    names = method.data.labels.names
    if not isinstance(method, Generator):
        raise _unable(model, method, "draw images", Generator)
    wanted = split_labels(labels, names) if isinstance(labels, str) else labels
    only = find_labels(wanted, names) if wanted is not None else None
    archive = out / "generated.npz"
    generate(model, out=archive, picture=out / "generated.png", seed=seed, settings=settings, only=only, device=device)
    with np.load(archive, allow_pickle=False) as drawn:
        images, asked, said, seeds = (drawn[name] for name in ("images", "labels", "predicted", "seeds"))
    titles = [_said(row, method) for row in asked]
    lines: list[list[Any]] = []
    for i, image in enumerate(images):
        name = f"images/{i:04d}.png"
        _save_image(image, out / name)
        lines.append([name, titles[i], *map(_number, said[i]), int(seeds[i])])
    header = ("image", "asked", *(f"predicted:{name}" for name in names), "seed")
    kept = np.mean([_said(row, method) == title for row, title in zip(said, titles, strict=True)])
    summary = f"{_counted(lines)}, of {kept:.0%} the model says just what was asked for"
    return Answers(header, lines, summary, [])


def _save_image(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    with atomic_path(path) as aside:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(aside)
