"""Pictures for people: grids of images, strips of counterfactuals and maps over images, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jointdiff.files import atomic_path
from jointdiff.letters import settle


def save_grid(images: np.ndarray, path: Path, *, rows: Sequence[str], per_row: int, title: str) -> None:
    """Draw uint8 images (len(rows) * per_row, H, W, C) with a name before every row."""
    figure, axes = _canvas(len(rows), per_row)
    for row, name in enumerate(rows):
        for column in range(per_row):
            _show(axes[row, column], images[row * per_row + column])
        axes[row, 0].set_ylabel(_plain(name), rotation=0, ha="right", va="center", fontsize=9)
    _save(figure, path, title)


def save_strips(
    columns: dict[str, np.ndarray], regions: np.ndarray, path: Path, *, rows: Sequence[str], title: str
) -> None:
    """Draw one row per case: images (uint8, N x H x W x C) in grey, maps (N x H x W) in colour, regions outlined.

    Maps of one column share their scale, from 0 to the column's 99.5th percentile; where there is none (NaN) it stays
    blank. Grey images and maps have their scale below.
    """
    figure, axes = _canvas(len(rows), len(columns))
    for column, (name, values) in enumerate(columns.items()):
        top = max(float(np.nanpercentile(values, 99.5)), 1e-6) if values.ndim == 3 else 1.0
        for row in range(len(rows)):
            axis = axes[row, column]
            if values.ndim == 4:
                shown = _show(axis, values[row])
            else:
                shown = axis.imshow(values[row], cmap="inferno", vmin=0.0, vmax=top)
            if regions[row].any():
                axis.contour(regions[row], levels=[0.5], colors="#00c8ff", linewidths=1.0)
            if row == 0:
                axis.set_title(_plain(name), fontsize=9)
            if shown is not None and row == len(rows) - 1:
                part = min(1.0, 6 / len(rows))  # of a tall picture, less of its height
                bar = figure.colorbar(
                    shown,
                    ax=axes[:, column],
                    orientation="horizontal",
                    shrink=0.9,
                    fraction=0.15 * part,
                    pad=0.02 * part,
                )
                bar.ax.tick_params(labelsize=7)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(_plain(name), rotation=0, ha="right", va="center", fontsize=9)
    _save(figure, path, title)


def save_pairs(images: np.ndarray, path: Path, *, captions: Sequence[str], title: str) -> None:
    """Draw uint8 images (2 * len(captions), H, W, C) two by two, with a caption above each pair; two pairs a row."""
    figure, axes = _canvas(max(-(-len(captions) // 2), 1), 4)
    for index, caption in enumerate(captions):
        row, left = index // 2, 2 * (index % 2)
        _show(axes[row, left], images[2 * index])
        _show(axes[row, left + 1], images[2 * index + 1])
        axes[row, left].set_title("\n".join(map(_plain, caption.splitlines())), fontsize=7, loc="left")
    _save(figure, path, title if captions else f"{title}: nothing to compare")


def save_overlay(
    columns: dict[str, np.ndarray],
    maps: np.ndarray,
    path: Path,
    *,
    rows: Sequence[str],
    title: str,
    scale: str,
    least: float = 0.0,
) -> None:
    """Draw one row per case: images (uint8, N x H x W x C), and the first of them with its map (N x H x W) laid over.

    A map is the more opaque the greater it is. All maps share the scale, from 0 to their 99.5th percentile or ``least``
    if that is more; ``scale`` says what it measures.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    top = max(float(np.percentile(maps, 99.5)), least, 1e-6)
    panels = [*columns, "map over image"]
    figure = Figure(figsize=(0.9 + 2.4 * len(panels), 0.6 + 2.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(panels), squeeze=False)
    first = next(iter(columns.values()))
    for row, name in enumerate(rows):
        for axis, panel in zip(axes[row], panels, strict=True):
            _bare(axis)
            _show(axis, columns.get(panel, first)[row])
            axis.set_xlabel(panel, fontsize=8)
        opacity = 0.7 * np.clip(maps[row] / top, 0.0, 1.0) ** 0.5
        axes[row, -1].imshow(maps[row], cmap="inferno", vmin=0.0, vmax=top, alpha=opacity)
        axes[row, 0].set_title(_plain(name), fontsize=9, loc="left")
    shared = ScalarMappable(Normalize(0.0, top), cmap="inferno")
    bar = figure.colorbar(shared, ax=axes[:, -1], shrink=0.9, aspect=20 * len(rows), extend="max", extendfrac=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(scale, fontsize=7)
    _save(figure, path, title)


def _plain(text: str) -> str:
    """Return text of a user's as matplotlib shows it unchanged: not as a formula, and not longer than a picture."""
    return (text if len(text) <= 90 else f"...{text[-87:]}").replace("$", r"\$")


def _canvas(rows: int, columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.25 * columns, 0.7 + 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        _bare(axis)
    return figure, axes


def _bare(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def _show(axis, image: np.ndarray):
    """Draw an image, and return what a grey one's scale is made of, or None for one in colour."""
    if image.shape[2] == 1:
        return axis.imshow(image[:, :, 0], cmap="gray", vmin=0, vmax=255)
    axis.imshow(image)
    return None


def _save(figure, path: Path, title: str) -> None:
    figure.suptitle(_plain(title), fontsize=10)
    settle(figure)
    with atomic_path(path) as aside:
        # Without the version in the metadata two runs give the same bytes.
        figure.savefig(aside, dpi=130, metadata={"Software": None})
