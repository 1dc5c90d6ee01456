"""Model folders in diffusers' style: config.json, safetensors, a model card; no pickles."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from jointdiff.config import RunSpec
from jointdiff.data.store import info_from_json, info_to_json
from jointdiff.environment import environment, to_text
from jointdiff.files import atomic_path, check_sum, read_json, read_sums, write_sums
from jointdiff.method import Method
from jointdiff.nets.autoencoder import Autoencoder
from jointdiff.registry import load_method

PICKLES = frozenset((".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"))  # what such files usually end in
AUTOENCODER = "vqvae"  # the folder of a latent model's first stage, as diffusers' LDMPipeline calls it


def save_model(
    method: Method,
    folder: Path | str,
    *,
    run: RunSpec,
    results: dict[str, Any] | None = None,
    made_with: dict[str, str] | None = None,
) -> None:
    """Write a method's weights, configuration and card to a folder, whole or not at all."""
    parts = method.diffusers_parts()
    elsewhere = tuple(f"{name}." for name in parts)
    tensors = {
        name: tensor.contiguous().cpu()
        for name, tensor in method.state_dict().items()
        if not name.startswith(elsewhere)
    }
    config = {
        "_class_name": type(method).__name__,
        "method": run.method,
        "data": info_to_json(method.data),
        "settings": method.settings.model_dump(mode="json"),
        "run": run.model_dump(mode="json"),
    }
    with atomic_path(folder) as aside:
        aside.mkdir(parents=True)
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        for name, part in parts.items():
            part.save_pretrained(aside / name)
        if pipeline := method.pipeline():
            (aside / "model_index.json").write_text(json.dumps(pipeline, indent=2) + "\n", encoding="utf-8")
        write_sums(aside, "**/*.safetensors")
        card = _card(method, run, results or {}, made_with or environment())
        (aside / "README.md").write_text(card, encoding="utf-8")


def load_model(folder: Path | str) -> Method:
    """Read a model folder and return the method in evaluation mode, on the CPU.

    Raises:
        ValueError: the folder is no model folder, holds a pickle, or its weights do not fit its configuration.
        DamagedError: weights are not those that its ``SHA256SUMS`` lists, where it has one.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is no model folder: it has no config.json; name the folder `model` of a trained cell"
        )
    # None is ever read; who put one there expected it to be, or wants somebody else's program to run it.
    if pickles := sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix.lower() in PICKLES):
        raise ValueError(
            f"{folder} holds {pickles[0]}, a pickle by its name, which can run any program when it is read; only "
            "safetensors are read: remove it, or get the folder from where it was trained"
        )
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} has no model.safetensors: it is incomplete; copy it again or train this cell again")
    if sums := read_sums(folder):
        for path in sorted(folder.rglob("*.safetensors")):
            expected = sums.get(path.relative_to(folder).as_posix())
            check_sum(path, expected, remedy="train this cell again, or copy the folder anew")
    config = read_json(folder / "config.json")
    cls = load_method(config["method"])
    info = info_from_json(config["data"])
    codec = Autoencoder(folder / AUTOENCODER, info) if _has_autoencoder(folder) else None
    method = cls.build(info, config["settings"], codec, folder)
    tensors = load_file(folder / "model.safetensors")
    own = method.state_dict()
    for name, part in method.diffusers_parts().items():
        weights = folder / name / "diffusion_pytorch_model.safetensors"
        if hasattr(part, "from_saved"):  # it has read its folder itself
            tensors |= {key: value for key, value in own.items() if key.startswith(f"{name}.")}
        elif hasattr(method, name) and weights.is_file():
            tensors |= {f"{name}.{key}": value for key, value in load_file(weights).items()}
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {error}; train this cell again"
        ) from error
    return method.eval()


def _has_autoencoder(folder: Path) -> bool:
    """Return whether the folder holds an autoencoder, and not the wavelets that can stand in its place."""
    part = folder / AUTOENCODER / "config.json"
    return part.parent.is_dir() and not (part.is_file() and read_json(part)["_class_name"] == "HaarWavelet")


def _card(method: Method, run: RunSpec, results: dict[str, Any], made_with: dict[str, str]) -> str:
    data = method.data
    numbers = "\n".join(f"| {name} | {value} |" for name, value in results.items())
    title, licence, cite = map(_plain, (data.title, data.licence, data.cite))
    names = _plain(", ".join(data.labels.names))
    pipeline = method.pipeline()
    reader = f"\n{_how_diffusers_draws(method, pipeline)}\n" if pipeline else ""
    return f"""---
library_name: jointdiff
tags: [{run.method}, {data.name}]
---

# {run.variant} on {title}

Trained by JointDiff Bench for research on label-scarce classification. It is no medical device.

- data: {title} ({licence}), {data.size} px, {data.channels} channel(s); cite {cite}
- labels: {run.labels} of the training images; predicts {names} ({data.labels.kind})
- seed {run.seed}, run {run.digest}
- made with {_plain(to_text(made_with))}
- weights: moving average, chosen on the validation part of the labelled images

```python
from jointdiff.models import load_model

model = load_model("FOLDER")
probabilities = model.predict(images)  # float images (N, {data.channels}, {data.size}, {data.size}) in [-1, 1]
```
{reader}
| measured in training | |
|---|---|
{numbers}
"""


def _plain(text: str) -> str:
    """Return text of a user's as Markdown shows it unchanged, in one line: neither markup nor a link."""
    return re.sub(r"([\\`*\[\]#|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _how_diffusers_draws(method: Method, pipeline: dict[str, Any]) -> str:
    name = pipeline["_class_name"]
    # Where estimates of the image are clipped, diffusers' default keeps the noise of the unclipped ones.
    same = "; call it with `use_clipped_model_output=True`" if name == "DDIMPipeline" else ""
    text = f"diffusers draws from it as well: `pipeline = {name}.from_pretrained(FOLDER)`{same}."
    if pipeline["unet"][0] == "diffusers":
        return text
    names = [*method.task.condition_names, "nothing (the default)"]
    conditions = _plain(", ".join(f"{i} {name}" for i, name in enumerate(names)))
    return (
        f"{text} This needs jointdiff installed. `pipeline.unet.ask_for(CONDITION, guidance=2.0)` says what is to be "
        f"drawn: {conditions}."
    )
