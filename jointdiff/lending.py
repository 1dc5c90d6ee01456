"""What one variant may take from another: its trained network (``start``), the images it draws (``synthetic``). Light.

Whatever is lent must be there for each cell that borrows, and bring in no label or validation image of another budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jointdiff.complaints import ConfigError, check_known
from jointdiff.declared import abilities, declared_methods

if TYPE_CHECKING:
    from jointdiff.config import DataSet, MethodVariant

    Methods = Mapping[str, MethodVariant]
    DataSets = Mapping[str, DataSet]


def check_lending(name: str, *, methods: Methods, datasets: DataSets) -> None:
    """Check what a variant takes from others.

    Raises:
        ConfigError: it waits for itself, or what it takes is not there for each of its cells.
    """
    _check_no_circle(name, methods)
    _check_start(name, methods, datasets)
    _check_synthetic(name, methods, datasets)


def _check_no_circle(name: str, methods: Methods, waiting: tuple[str, ...] = ()) -> None:
    """Check that no variant waits for itself, by ``start`` or ``synthetic``."""
    for key in ("start", "synthetic"):
        if (other := getattr(methods[name], key)) is not None:
            check_known(other, methods, f"methods.{name}.{key}: {other!r} is no key of methods")
            if other in (*waiting, name):
                raise ConfigError(f"methods.{name}.{key}: {' -> '.join([*waiting, name, other])} is a circle")
            _check_no_circle(other, methods, (*waiting, name))


def _check_start(name: str, methods: Methods, datasets: DataSets) -> None:
    """Check that what a variant begins with is there for each of its cells, and saw no image that validates it."""
    variant, key = methods[name], f"methods.{name}.start"
    if variant.start is None:
        return
    source = methods[variant.start]
    for dataset, data in datasets.items():
        trained = source.budgets(data.labels)
        for budget in variant.budgets(data.labels):
            if source.labels != "all" and budget not in trained:
                raise ConfigError(
                    f"{key}: {variant.start!r} is not trained with the label budget {budget!r} of {dataset}; "
                    "add it to its `labels`"
                )
            # Only counts and fractions are parts of one order, in which "all" comes last.
            if source.labels == "all" and re.search("per-class|list-", budget):
                raise ConfigError(
                    f"{key}: {variant.start!r} with `labels: all` learns from images that validate the label "
                    f"budget {budget!r} of {dataset}; give it `labels: grid`"
                )


def _check_synthetic(name: str, methods: Methods, datasets: DataSets) -> None:
    """Check that the images a variant learns from are drawn for each of its cells, with its own labels alone."""
    variant, key = methods[name], f"methods.{name}.synthetic"
    if variant.synthetic is None:
        if not variant.real_labels:
            raise ConfigError(f"methods.{name}.real_labels: without `synthetic` there is nothing else to learn from")
        return
    generator = methods[variant.synthetic]
    if not generator.generate:
        raise ConfigError(f"{key}: {variant.synthetic!r} draws no images; give it `generate: true`")
    if variant.autoencoder is not None:
        raise ConfigError(f"{key}: {name!r} works in latents, which drawn images do not have; remove `autoencoder`")
    for dataset, data in datasets.items():
        for budget in variant.budgets(data.labels):
            if budget not in generator.budgets(data.labels):
                raise ConfigError(
                    f"{key}: {variant.synthetic!r} is not trained with the label budget {budget!r} of {dataset}, "
                    f"which {name!r} is; their `labels` must agree, or labels would be handed on"
                )


def check_no_label_is_handed_on(name: str, *, methods: Methods) -> None:
    """Check that all a variant begins with, directly or not, was given no labels but its own.

    Raises:
        ConfigError: it begins with what was trained with every label.
    """
    start, every_label = methods[name].start, False
    while start is not None and methods[name].labels != "all":
        entry = methods[start]
        every_label |= entry.labels == "all"  # and so has what that one begins with
        if every_label and "label_free" not in abilities(entry.method or start):
            able = [method for method in declared_methods() if "label_free" in abilities(method)]
            raise ConfigError(
                f"methods.{name}.start: {start!r} is trained with every label, which {name!r} is not to have; "
                f"give it `labels: grid`, or start from a method that learns without labels: {', '.join(able)}"
            )
        start = entry.start
