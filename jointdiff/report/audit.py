"""What the roles of a data set's splits share, as tables and a picture."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jointdiff.data.audit import find_leaks, most_alike
from jointdiff.data.store import open_store
from jointdiff.evaluate.scores import write_csv
from jointdiff.files import atomic_path
from jointdiff.pictures import save_pairs
from jointdiff.report.layout import html_page

SHOWN = 6  # pairs in the picture


def draw_audit(
    store: Path | str, splits: Sequence[Path | str], *, table: Path | str, page: Path | str, picture: Path | str
) -> None:
    """Look for leaks in every split of a data set, and show the pairs across roles that are most alike.

    Args:
        store: folder of the prepared data set.
        splits: tables at labels-<budget>/split-<seed>.parquet.
        table, page: the leaks as CSV and as HTML, below what the data set's publisher does not vouch for.
        picture: the most similar pairs of a test image and one of the training side.
    """
    data = open_store(store)
    audits: list[pd.DataFrame] = []
    alike: dict[tuple[int, int], float] = {}
    for path in map(Path, splits):
        split = pd.read_parquet(path)
        found = find_leaks(data, split)
        found.insert(0, "seed", path.stem.removeprefix("split-"))
        found.insert(0, "labels", path.parent.name.removeprefix("labels-"))
        audits.append(found)
        alike |= {(one, other): likeness for one, other, likeness in most_alike(data, split, count=SHOWN)}
    leaks = pd.concat(audits)
    write_csv(table, list(leaks.columns), leaks.itertuples(index=False))
    with atomic_path(page) as aside:
        caveats = "".join(f"<p>{html.escape(caveat)}</p>" for caveat in data.info.caveats)
        # pandas escapes what stands in the cells.
        rows = leaks.rename(columns=lambda name: name.replace("_", " ")).to_html(index=False, border=0, justify="left")
        aside.write_text(html_page(f"Audit of {data.info.title}", caveats + rows), encoding="utf-8")

    near = {frozenset(pair) for pair in data.near_duplicates.tolist()}
    shown = sorted(alike.items(), key=lambda item: -item[1])[:SHOWN]
    captions = [
        f"{data.sample_ids[one]} (test)\n{data.sample_ids[other]} (training side)\nr = {likeness:.4f}"
        + (", same pixels" if data.pixels[one] == data.pixels[other] else "")
        + (", near-duplicates" if frozenset((one, other)) in near else "")
        for (one, other), likeness in shown
    ]
    pairs = data.images[np.array([row for pair, _ in shown for row in pair], dtype=np.int64)]
    save_pairs(pairs, Path(picture), captions=captions, title=f"{data.info.title}: most alike across test and training")
