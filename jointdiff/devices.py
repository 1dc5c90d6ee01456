"""Which device and precision a job uses."""

from __future__ import annotations

import os

import torch


def pick_device(wanted: str = "auto") -> torch.device:
    """Return the device named by ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: CUDA is asked for where torch finds no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "training.device: 'cuda' is asked for, but torch finds no GPU here; "
            "use 'auto' or 'cpu', or look at `jointdiff doctor`"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(wanted: str, device: torch.device) -> str:
    """Resolve ``auto`` to ``bf16`` where the device has matrix units for it, else ``fp32``."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") else "fp32"


def use_threads(count: int) -> None:
    """Let torch compute with ``count`` threads, which Snakemake grants a job."""
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    torch.set_num_threads(count)


def describe(device: torch.device) -> str:
    """Name the device for the cost table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
