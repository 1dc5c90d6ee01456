"""Your own images: a folder or a zip, and a table that names them. ``jointdiff data init PATH`` writes the options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from jointdiff.data.images import open_picture
from jointdiff.data.masks import open_mask
from jointdiff.data.own.tables import Collection, Options, Row, read_collection
from jointdiff.data.source import (
    POLICIES,
    DataError,
    LabelSpec,
    Loadable,
    NearDuplicates,
    Region,
    Sample,
    Source,
)

SOURCE = Source(
    name="own",
    title="Own images",
    labels=LabelSpec("multi_label", ("finding",)),
    channels=1,
    licence="not stated",
    cite="unpublished",
    options=Options.defaults(),
    access="name your folder or zip in the option path; `jointdiff data init PATH` writes a configuration",
)


def describe(**options: Any) -> Source:
    """Return what the user's table and options say about the data.

    Raises:
        ConfigError: an option names what is not there.
        DataError: the table cannot be read or has a mistake.
    """
    collection = read_collection(Options(**options)).require()
    given = collection.options
    caveats = [f"{problem.summary}." for problem in collection.problems if problem.severity == "warning"]
    if not given.group:
        joined = "unless they are nearly identical" if given.join_near_duplicates else "and numbers are then too good"
        caveats.append(f"No group column is set: images of one patient may part, {joined}.")
    return Source(
        name=SOURCE.name,
        title=given.title or Path(given.path).stem,
        labels=LabelSpec(collection.kind, collection.names),
        channels=given.channels,
        licence=given.licence,
        cite=given.cite,
        augmentations=replace(
            POLICIES[given.augmentation],
            horizontal_flip=given.horizontal_flip,
            vertical_flip=given.vertical_flip,
        ),
        resize=cast(Any, given.resize),
        near_duplicates=NearDuplicates(join=given.join_near_duplicates),
        options=SOURCE.options,
        inputs=(*collection.inputs, *collection.files.paths(collection.named)),
        caveats=tuple(caveats),
    )


def read(raw: Path | None = None, *, size: int, **options: Any) -> Iterator[Loadable]:
    """Yield for each row of the table a function that loads its image, masks and boxes.

    The options are those of ``jointdiff.data.own.tables.Options``, where each is explained.

    Raises:
        ConfigError: an option names what is not there.
        DataError: the table has a mistake; when loaded, an image or a mask does.
    """
    collection = read_collection(Options(**options)).require()
    for row in collection.rows:
        yield partial(load_sample, collection, row)


def load_sample(collection: Collection, row: Row) -> Sample:
    """Decode what a row names.

    Raises:
        DataError: a file does not decode, or a mask fits neither its image nor its label.
    """
    files, options = collection.files, collection.options
    name, mode = files.name(row.file), "L" if options.channels == 1 else "RGB"
    picture = open_picture(files.read(row.file), name=name)
    image = picture.to_bytes(name=name, mode=mode, window=options.window)
    regions = [Region(finding, box=box) for finding, box in row.boxes]
    for finding, file in row.masks:
        named = files.name(file)
        mask = open_mask(files.read(file), name=named, values=options.mask_values).on(picture, name=named)
        if not mask.any():
            continue
        if finding is None:
            raise DataError(
                f"{files.name(file)} shows a finding that row {row.number} does not have; correct the label"
            )
        regions.append(Region(finding, mask=mask))
    return Sample(row.file, image, row.labels, row.group, row.split, regions)
