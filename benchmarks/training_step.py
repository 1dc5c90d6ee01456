"""What a joint training step takes beside one in the manner of the published code, change by change.

    uv run python benchmarks/training_step.py                      # 28 px, 2 M parameters, 64 + 64 images
    uv run python benchmarks/training_step.py --case pixels        # 32 px, 128 channels (JointDiffusion's size)
    uv run python benchmarks/training_step.py --case latents       # 4 x 32 x 32, 256 channels (Mediffusion's size)

The reference is written anew after what public code does: a whole pass through the U-Net for denoising and another one
for classification, attention spelt out and under gradient checkpointing, losses brought to the host in each step, an
optimiser and a moving average that go from weight to weight, images decoded as they are needed (and encoded to latents
in each step), memory given back to the system. Not all public code does all of it: JointDiffusion's runs the encoder
alone for classification (github.com/KamilDeja/joint_diffusion, ``UNetModel.classify``), which is the second line. Both
work on the same network, images and noise levels, and the tests compare their losses. Each variant is a process of its
own, all take their steps in turn, so that a busy machine slows all of them; what is printed are medians, their
quartiles, and ratios to the reference.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from noise import UNETS, noise_info


@dataclass(frozen=True)
class Manner:
    """How a step is done; the defaults are the published manner."""

    no_idle_decoder: bool = False  # classification ends with the encoder
    one_encoder: bool = False  # both losses from one pass through it
    plain_attention: bool = False  # a library's kernel, nothing computed twice
    whole_optimiser: bool = False  # all weights at once, in the optimiser and the moving average
    quiet: bool = False  # no value brought to the host
    at_hand: bool = False  # images as bytes in memory, latents computed once
    keeps_memory: bool = False  # freed memory stays with the process, in large pages
    channels_last: bool = False  # weights and maps
    autocast: bool = False  # bfloat16
    compiled: bool = False  # both halves of the U-Net


CHANGES = {
    "in the published manner": {},
    "classification without the decoder": {"no_idle_decoder": True},
    "both losses from one pass through the encoder": {"one_encoder": True},
    "attention by a kernel, not checkpointed": {"plain_attention": True},
    "optimiser and average over all weights at once": {"whole_optimiser": True},
    "no value brought to the host": {"quiet": True},
    "images and latents at hand": {"at_hand": True},
    "memory kept": {"keeps_memory": True},
    "channels last": {"channels_last": True},
}
ON_A_GPU = {"bfloat16": {"autocast": True}, "compiled": {"compiled": True}}  # on a CPU neither pays


def manners() -> dict[str, Manner]:
    """Return the manners from the reference on, each with one change more, as far as this machine goes."""
    from jointdiff.devices import pick_device

    done: dict[str, bool] = {}
    found = {}
    for name, change in (CHANGES | (ON_A_GPU if pick_device().type == "cuda" else {})).items():
        done |= change
        found[name] = Manner(**done)
    return found


class Steps:
    """Training steps of one manner."""

    def __init__(self, case: str, manner: Manner, *, batch: int) -> None:
        import torch

        from jointdiff.data.augment import Views
        from jointdiff.devices import pick_device
        from jointdiff.methods.joint import JointDiffusion
        from jointdiff.training.averaging import averaged_copy

        shape = dict(UNETS[case])
        self.manner, self.batch, self.device = manner, batch, pick_device("auto")
        self.done = 0
        names = tuple("abcdefghij")
        # Latents of 32 x 32 are those of images of 256 px; the codec says what the U-Net is given.
        del shape["channels"]
        size = 8 * shape.pop("size") if case == "latents" else shape.pop("size")
        info = noise_info(size, names=names, kind="one_of_k")
        torch.manual_seed(0)
        settings = JointDiffusion.Settings(**shape, classifier_input="clean", classification_weight=0.1)
        self.codec = _codec(info, self.device) if case == "latents" else None
        self.method = JointDiffusion(info, settings, self.codec).to(self.device).train()
        if not manner.channels_last:
            self.method = self.method.to(memory_format=torch.contiguous_format)
        if not manner.plain_attention:
            _spell_out_attention(self.method)
        self.averaged = averaged_copy(self.method)
        if manner.compiled:
            unet = self.method.unet
            unet.encode, unet.decode = torch.compile(unet.encode), torch.compile(unet.decode)
        self.views = Views(info.augmentations)
        one = {"fused": True} if manner.whole_optimiser else {"foreach": False}
        self.optimiser = torch.optim.AdamW(self.method.parameters(), lr=1e-4, weight_decay=0.0, **one)
        pixels = torch.randint(256, (2 * batch, 1, info.size, info.size), dtype=torch.uint8)
        self.labels = torch.eye(len(names))[torch.arange(batch) % len(names)].to(self.device)
        self.files = [] if manner.at_hand else [_encoded(image) for image in pixels[:, 0].numpy()]
        self.stored = self._codes(pixels.to(self.device)) if manner.at_hand else None

    def take(self) -> float:
        """Take one step and return its loss."""
        import torch

        from jointdiff.training.averaging import update_average
        from jointdiff.training.feed import seed_step

        seed_step(0, self.done)
        codes = self.stored if self.stored is not None else self._codes(_decoded(self.files).to(self.device))
        unlabelled, labelled = codes[: self.batch], codes[self.batch :]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.manner.autocast):
            terms = self._losses(labelled, unlabelled)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        if not self.manner.quiet:
            _ = {name: value.item() for name, value in terms.items()}
        torch.nn.utils.clip_grad_norm_(self.method.parameters(), 1.0, foreach=self.manner.whole_optimiser)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.done += 1
        if self.manner.whole_optimiser:
            update_average(self.averaged, self.method, decay=0.9999, step=self.done)
        else:
            with torch.no_grad():
                for mean, now in zip(self.averaged.parameters(), self.method.parameters(), strict=True):
                    mean.mul_(0.9999).add_(now, alpha=0.0001)
        return loss.detach()

    def _losses(self, labelled: Any, unlabelled: Any) -> dict[str, Any]:
        import torch

        from jointdiff.diffusion.process import STEPS
        from jointdiff.method import Batch

        if self.manner.one_encoder:
            batch = Batch(labelled, self.labels, unlabelled, self.done, 10**6)
            return self.method(batch, self.views, self.averaged)
        method = self.method
        codes = unlabelled if self.codec else method.codes_of(self.views.flip(unlabelled))
        steps = torch.randint(STEPS, (len(codes),), device=codes.device)
        noise = torch.randn_like(codes)
        output = method.unet(method.process.add_noise(codes, noise, steps), steps)
        denoising = (output.float() - method.process.target(codes, noise, steps)).square().mean()
        shown = labelled if self.codec else method.codes_of(self.views.weak(labelled))
        encoding = method.unet.encode(shown, torch.zeros(len(shown), dtype=torch.long, device=shown.device))
        if not self.manner.no_idle_decoder:
            method.unet.decode(encoding)  # of which nothing is used
        classification = method.task.loss(method.classify(encoding), self.labels).mean()
        weight = method.settings.classification_weight
        return {"denoising": denoising, "classification": weight * classification}

    def _codes(self, pixels: Any) -> Any:
        import torch

        from jointdiff.method import to_unit_range

        images = to_unit_range(pixels)
        if self.codec is None:
            return images
        with torch.no_grad():
            return torch.cat([self.codec.encode(part) for part in images.split(8)])


def _codec(info: Any, device: Any) -> Any:
    """Return an autoencoder of the size of Stable Diffusion's with random weights."""
    import tempfile
    from pathlib import Path

    from jointdiff.nets.autoencoder import Autoencoder, KLAutoencoder

    settings = {"width": 128, "multipliers": (1, 2, 4, 4), "blocks": 2, "latent_channels": 4}
    folder = Path(tempfile.mkdtemp(prefix="jointdiff-benchmark-"))
    KLAutoencoder(info, KLAutoencoder.Settings.model_validate(settings)).save_pretrained(folder)
    codec = Autoencoder(folder, info)
    codec._on(device)
    return codec


def _encoded(image: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _decoded(files: list[bytes]) -> Any:
    import numpy as np
    import torch
    from PIL import Image

    return torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]))[:, None]


def _spell_out_attention(method: Any) -> None:
    """Replace each attention of a U-Net by one of the same weights that is written out and checkpointed."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def spelt_out(block: Any, x: Any) -> Any:
        n, d, h, w = x.shape
        pixels = block.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (to(pixels).view(n, h * w, -1, block.head) for to in (block.to_q, block.to_k, block.to_v))
        weight = torch.einsum("nihc,njhc->nhij", q * block.head**-0.25, k * block.head**-0.25)
        seen = torch.einsum("nhij,njhc->nihc", weight.float().softmax(-1).to(v.dtype), v).reshape(n, h * w, d)
        return x + block.to_out[0](seen).transpose(1, 2).view(n, d, h, w)

    def attend(block: Any) -> Callable[[Any], Any]:
        return lambda x: checkpoint(spelt_out, block, x, use_reentrant=False)

    for module in method.modules():
        if type(module).__name__ == "_SelfAttention":
            module.forward = attend(module)


def work(options: argparse.Namespace) -> None:
    """Be the process of one manner: take a step for each line read, and answer with its seconds."""
    import torch

    torch.set_num_threads(options.threads)
    manner = list(manners().values())[options.worker]
    steps = Steps(options.case, manner, batch=options.batch)
    print(f"{sum(p.numel() for p in steps.method.parameters()) / 1e6:.1f}", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        steps.take()
        if steps.device.type == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - started, flush=True)


def main() -> None:
    """Print a line for each manner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=UNETS, default="small")
    parser.add_argument("--batch", type=int, default=64, help="labelled images, and as many unlabelled ones")
    parser.add_argument("--steps", type=int, default=15, help="measured steps of each, after two others")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options)
        return
    from jointdiff.jobs import keep_memory

    crew = {}
    for index, (name, manner) in enumerate(manners().items()):
        environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
        environment["OMP_NUM_THREADS"] = str(options.threads)
        if manner.keeps_memory:
            keep_memory(environment)
        command = [sys.executable, __file__, f"--worker={index}"]
        command += [f"--case={options.case}", f"--batch={options.batch}", f"--threads={options.threads}"]
        crew[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    sizes = [worker.stdout.readline().strip() for worker in crew.values() if worker.stdout]
    seconds: dict[str, list[float]] = {name: [] for name in crew}
    for turn in range(options.steps + 2):
        for name, worker in crew.items():
            assert worker.stdin and worker.stdout
            worker.stdin.write("\n")
            worker.stdin.flush()
            took = float(worker.stdout.readline())
            if turn >= 2:
                seconds[name].append(took)
    for worker in crew.values():
        worker.communicate()
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, {sizes[0]} M parameters, "
          f"{options.batch} + {options.batch} images")  # fmt: skip
    print("| each with what stands above it | s per step, median (quartiles) | reference / this |\n|---|--:|--:|")
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.3f} ({low:.3f} to {high:.3f}) | {first / middle:.2f} |")


if __name__ == "__main__":
    main()
