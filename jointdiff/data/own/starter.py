"""A first experiment for a user's own images, with every guess written out for the user to correct."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from jointdiff.config import ConfigError
from jointdiff.data.own.inspection import Report, inspect
from jointdiff.data.own.tables import Options
from jointdiff.data.source import DataError
from jointdiff.files import atomic_path
from jointdiff.paths import relative_if_below

LOOKS = 200  # images looked at: enough to see sizes and colour
BUDGETS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
SIZES = {32: 64, 64: 512, 128: 2048}  # for images whose median side is below; larger ones get 256
LEVELS = {32: [1, 2, 4], 64: [1, 2, 4, 4], 128: [1, 1, 2, 4, 4], 256: [1, 1, 1, 2, 4, 4]}

TEMPLATE = """\
# A first experiment on {path}. Each guess is written out: correct what is wrong, then
#   uv run jointdiff data check {file}
#   uv run snakemake --cores all --configfile {file}
# {found}
# config/config.yaml explains all other keys.

name: {name} # results/{name}

seeds: [0] # more seeds show the spread: [0, 1, 2]

datasets:
  {name}:
    source: own
    size: {size} # side in pixels: 32, 64, 128 or 256; above 64 wants a GPU
    labels: [{budgets}] # label budgets, validation included; {labelled} images have labels
    options:
{options}
methods:
  joint:
    {explain_joint}settings:
      width: 16 # channels of the first level
      multipliers: {levels} # {size} px down to 8
      blocks: 1
      attention_at: []
      learning_rate: 0.001
      ema: 0.995
      schedule: cosine # a falling rate ends with calmer weights
      classification_weight: 1.0
      pooling: both
    training:
      steps: 1500
  fully_supervised: # the ceiling, and the judge of counterfactuals
    method: supervised
    labels: all
    {explain_maps}settings: &network # WRN-10-2
      depth: 10
      width: 2
    training:
      steps: 800
  supervised: # the labelled images alone
    {explain_maps}settings: *network
  fixmatch: # and the unlabelled ones
    {explain_maps}settings:
      <<: *network
      unlabelled_ratio: 2
  random: {floor}

training:
  steps: 400
  batch_size: 32
"""

# Written out where they are guessed, or where an error asks for them.
RARE = ("unknown", "separator", "no_finding", "alike_classes", "alike_groups", "unknown_groups", "known_groups")
COMMENTS = {
    "path": "folder or zip",
    "table": "CSV or Parquet in it",
    "file": "its column of files",
    "labels": "its columns of 0 and 1, blank where unknown; or its one column of classes",
    "classes": "their order",
    "unknown": "texts in them that mean unlabelled",
    "separator": "between findings in one cell",
    "no_finding": "texts that mean none of them",
    "alike_classes": "classes that differ by case or blanks alone: ask, join or keep",
    "task": "multi_label or one_of_k",
    "group": "its column of patients: what must never part",
    "alike_groups": "groups that differ by case, blanks or zeros in front alone: ask, join or keep",
    "unknown_groups": "texts that name no patient",
    "known_groups": "texts that look like that and name one",
    "split": "its column of train, validation and test; empty: drawn per seed",
    "mask": "its column of masks",
    "mask_values": "of masks: which values are the finding; auto: all but black",
    "boxes": "table of boxes",
    "channels": "1: grey, 3: colour",
    "window": "of deep images: auto, full or a range such as 0..4095",
    "horizontal_flip": "true where a mirror image has the same labels",
    "augmentation": "of strong views: medical, gentle, so that small findings stay in view; natural, as FixMatch's",
    "join_near_duplicates": "nearly identical images become one group; needed where no patient is known",
}


def starter_config(path: Path | str, *, file: str = "FILE.yaml") -> str:
    """Return a commented configuration for a folder, a zip or a table.

    Args:
        path: the user's data.
        file: what the configuration will be called, for the commands in its head.

    Raises:
        ConfigError: there is nothing at this path.
        DataError: the table or the zip cannot be read, or no label column is recognised.
    """
    report = inspect(Path(path), images=LOOKS)
    if report.collection is None:
        raise DataError(str(report.problems[0]))
    collection, options = report.collection, report.options
    errors = [problem for problem in report.problems if problem.severity == "error"]
    asked = {word for problem in errors for word in re.findall(r"\w+", problem.remedy)}
    written = [
        key for key in COMMENTS if key not in RARE or key in asked or getattr(options, key) != Options.defaults()[key]
    ]
    single = collection.kind == "one_of_k" and len(options.labels) == 1
    given: dict[str, Any] = {key: getattr(options, key) for key in written} | {
        "path": relative_if_below(Path(options.path).expanduser()),
        "labels": list(options.labels),
        "classes": list(collection.names) if single and "alike_classes" not in asked else [],
        "task": collection.kind,
        "channels": 3 if 2 * sum(look.colour for look in report.looks) > len(report.looks) else 1,
        "join_near_duplicates": not options.group,
    }
    size = _size(report)
    labelled = [row for row in collection.rows if any(value == value for value in row.labels)]
    has_regions = any(row.boxes or any(finding for finding, _ in row.masks) for row in collection.rows)
    groups = len({row.group for row in collection.rows})
    return TEMPLATE.format(
        path=json.dumps(given["path"], ensure_ascii=False),
        file=shlex.quote(file),
        found="\n# ".join(
            [
                f"{len(collection.rows)} images of {groups} groups"
                + (f"; {len(errors)} kinds of errors must be mended first, which the check shows" if errors else ""),
                *(f"Guessed: {line}" for line in report.guessed),
            ]
        ),
        name=_identifier(Path(given["path"]).stem),
        size=size,
        labelled=len(labelled),
        budgets=", ".join(_budgets(round(0.75 * len(labelled)), classes=len(collection.names))),
        options="".join(
            f"      {key}: {json.dumps(value, ensure_ascii=False)} # {COMMENTS[key]}\n" for key, value in given.items()
        ),
        levels=LEVELS[size],
        explain_joint="explain: [counterfactual]\n    " if has_regions else "",
        explain_maps="explain: [grad_cam]\n    " if has_regions else "",
        floor="\n    explain: [random_map, centre_prior]" if has_regions else "{}",
    )


def _size(report: Report) -> int:
    sides = [max(look.width, look.height) for look in report.looks]
    median = float(np.median(sides)) if sides else 64.0
    return next((size for size, below in SIZES.items() if median < below), 256)


def _budgets(available: int, *, classes: int) -> list[str]:
    """Choose two budgets, the larger at most half of what can be labelled, so that methods differ; or all there is."""
    possible = [budget for budget in BUDGETS if 5 * classes <= budget <= available / 2]
    if not possible:
        return ["all"]
    smaller = [budget for budget in possible if budget <= possible[-1] / 4]
    return [str(budget) for budget in [*smaller[-1:], possible[-1]]]


def _identifier(text: str) -> str:
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return name or "my_scans"


def init_command(path: Path, out: Path | None = None) -> int:
    """Write the configuration to ``out``, by default named after the data, and say what to do next.

    Raises:
        ConfigError: the file exists already.
        DataError: the data cannot be read.
    """
    name = _identifier(path.resolve().parent.name if path.is_file() and path.suffix != ".zip" else path.resolve().stem)
    out = out or Path(f"{name}.yaml")
    if out.exists():
        raise ConfigError(f"{out} exists already; remove it, or choose another name with --out")
    text = starter_config(path, file=str(out))
    with atomic_path(out) as aside:
        aside.write_text(text, encoding="utf-8")
    quoted = shlex.quote(str(out))
    print(f"wrote {out}: look through it, then\n  uv run jointdiff data check {quoted}")
    print(f"  uv run snakemake --cores all --configfile {quoted}")
    return 0
