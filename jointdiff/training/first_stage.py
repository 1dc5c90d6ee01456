"""The first stage of latent methods: an autoencoder, trained or fetched, and the latents of a whole data set."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jointdiff.batches import image_batches
from jointdiff.config import ConfigError, FirstStage
from jointdiff.data.store import Store, open_store
from jointdiff.devices import pick_device
from jointdiff.environment import environment
from jointdiff.files import atomic_path, write_json
from jointdiff.method import to_bytes
from jointdiff.nets.autoencoder import (
    Autoencoder,
    KLAutoencoder,
    fetch_pretrained,
    measure_latents,
    set_scale,
    standardise,
)
from jointdiff.pictures import save_grid
from jointdiff.progress import Progress
from jointdiff.seeding import derive
from jointdiff.training.loop import fit, forget

BATCH = 64  # images encoded at once while latents are measured


def make_first_stage(
    spec: FirstStage,
    *,
    store: Path | str,
    split: Path | str,  # of all labels: validation chooses weights, all other images but the test's train, unlabelled
    out: Path | str,  # folder: model/, metrics.jsonl, autoencoder.json and reconstructions.png are written here
    state: Path | str,  # folder of the resumable state
    code_version: str = "",
) -> None:
    """Train an autoencoder and standardise its latents, or fetch a pretrained one and scale them to unit variance.

    Raises:
        ConfigError: its settings are unknown or do not fit the images.
        ValueError: the pretrained one cannot be read.
    """
    out, data = Path(out), open_store(store)
    roles = data.split_rows(split)
    lines, cost = b"", dict[str, Any]()
    with atomic_path(out / "model") as aside:
        if spec.pretrained is not None:
            fetch_pretrained(spec.pretrained, aside)
        else:
            torch.manual_seed(derive(spec.seed, "initial weights"))
            best, lines, cost = fit(
                build_autoencoder(spec, data),
                data,
                roles,
                plan=spec.training,
                seed=spec.seed,
                label=f"train autoencoder {spec.name} on {data.info.name}, seed {spec.seed}",
                state=Path(state),
                key=f"{spec.digest} {code_version}",
            )
            best.save_pretrained(aside)
        device = pick_device(spec.training.device)
        codec = Autoencoder(aside, data.info)
        batches = partial(image_batches, data.images, batch_size=BATCH, device=device)
        measured = measure_latents(codec, batches(rows=roles["labelled"]))
        if spec.pretrained is None:
            standardise(aside, mean=measured["mean"], std=measured["std"])
        else:  # its weights stay what others know
            set_scale(aside, measured["overall_std"])
        codec = Autoencoder(aside, data.info)
        held_out = measure_latents(codec, batches(rows=roles["validation"]))
        shown = next(batches(rows=roles["validation"]))[:10]
        rebuilt = codec.decode(codec.encode(shown)).clamp(-1.0, 1.0)
    pictures = torch.cat([shown, rebuilt])
    save_grid(
        to_bytes(pictures).permute(0, 2, 3, 1).cpu().numpy(),
        out / "reconstructions.png",
        rows=["image", "rebuilt"],
        per_row=len(shown),
        title=f"{data.info.title}: autoencoder {spec.name}, {held_out['psnr']:.1f} dB",
    )
    with atomic_path(out / "metrics.jsonl") as aside:
        aside.write_bytes(lines)
    write_json(
        out / "autoencoder.json",
        {
            "spec": spec.model_dump(mode="json"),
            "latents": measured,
            "held_out": {name: held_out[name] for name in ("images", "psnr", "l1")},
            "environment": cost.pop("environment", None) or environment(),  # a pretrained one is scaled here alone
            "cost": cost,
            "code_version": code_version,
        },
    )
    forget(state)


def build_autoencoder(spec: FirstStage, data: Store) -> KLAutoencoder:
    """Build an autoencoder with its settings checked.

    Raises:
        ConfigError: unknown or unfit settings.
    """
    try:
        return KLAutoencoder(data.info, KLAutoencoder.Settings.model_validate(spec.settings))
    except ValueError as error:
        raise ConfigError(f"autoencoders.{spec.name}.settings: {error}") from error


@torch.no_grad()
def encode_latents(
    autoencoder: Path | str, *, store: Path | str, out: Path | str, batch_size: int = 256, device: str = "auto"
) -> None:
    """Write the latents of every image of a store, not augmented, as float16 (N, h, w, c) in numpy's format.

    Half precision keeps three digits of values of unit variance, and half of the disk.
    """
    data, target = open_store(store), pick_device(device)
    codec = Autoencoder(autoencoder, data.info)
    count = data.info.samples
    with atomic_path(out) as aside, Progress("encode", total=count, unit="images") as progress:
        shape = (count, codec.size, codec.size, codec.channels)
        # In order, not through a memory map: a full disk is then an error and not the end of the process.
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
        with aside.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images in image_batches(data.images, np.arange(count), batch_size=batch_size, device=target):
                file.write(codec.encode(images).permute(0, 2, 3, 1).half().cpu().contiguous().numpy().data)
                progress.advance(len(images))
