"""CIFAR-100: 60,000 photographs of 32 x 32 pixels in a hundred classes, or twenty superclasses (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jointdiff.config import ConfigError
from jointdiff.data.source import Augmentations, Facts, File, LabelSpec, Sample, Source
from jointdiff.data.sources._cifar import read_batches

ARCHIVE = "cifar-100-binary.tar.gz"

# In the order of the archive's coarse_label_names.txt and fine_label_names.txt, underscores as spaces.
COARSE = (
    "aquatic mammals",
    "fish",
    "flowers",
    "food containers",
    "fruit and vegetables",
    "household electrical devices",
    "household furniture",
    "insects",
    "large carnivores",
    "large man-made outdoor things",
    "large natural outdoor scenes",
    "large omnivores and herbivores",
    "medium-sized mammals",
    "non-insect invertebrates",
    "people",
    "reptiles",
    "small mammals",
    "trees",
    "vehicles 1",
    "vehicles 2",
)
# fmt: off
FINE = (
    "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn mower", "leopard", "lion", "lizard", "lobster", "man", "maple tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak tree", "orange", "orchid", "otter", "palm tree", "pear", "pickup truck",
    "pine tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman", "worm",
)
# fmt: on
# The two bytes of labels of a record, in their order.
NAMES = {"coarse": COARSE, "fine": FINE}


def describe(*, labels: str = "fine") -> Source:
    """Return the data set with its hundred classes ("fine") or its twenty superclasses ("coarse").

    Raises:
        ConfigError: there are no such labels.
    """
    if labels not in NAMES:
        raise ConfigError(f"datasets.cifar100.options.labels: {labels!r} is neither 'fine' nor 'coarse'")
    names = NAMES[labels]
    # Address, checksum, format and counts: https://www.cs.toronto.edu/~kriz/cifar.html
    return Source(
        name="cifar100",
        title="CIFAR-100" if labels == "fine" else "CIFAR-100, superclasses",
        labels=LabelSpec("one_of_k", names),
        channels=3,
        licence="none stated; the publisher asks to cite the technical report",
        cite="Krizhevsky, Learning multiple layers of features from tiny images, University of Toronto (2009)",
        files=(
            # The pixels without pickles.
            File(
                ARCHIVE, urls=(f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",), md5="03b5dce01913d631647c71ecec9e9cb8"
            ),
        ),
        augmentations=Augmentations(horizontal_flip=True),
        facts=Facts(
            samples=60_000,
            positives=dict.fromkeys(names, 60_000 // len(names)),
            splits={"train": 50_000, "test": 10_000},
        ),
        options={"labels": "fine"},
        caveats=(
            # Journal of Imaging 6(6):41.
            "10 % of the test images have a near-duplicate among the training images (Barz and Denzler 2020)",
        ),
    )


def read(raw: Path, *, size: int, labels: str = "fine") -> Iterator[Sample]:
    """Yield the training images, then the test images, each a group of its own.

    Raises:
        ConfigError: there are no such labels.
        DataError: the archive is absent or damaged, or a batch is.
    """
    describe(labels=labels)
    return read_batches(
        raw / ARCHIVE,
        {"train.bin": "train", "test.bin": "test"},
        kinds=tuple(map(len, NAMES.values())),
        used=list(NAMES).index(labels),
    )


SOURCE = describe()
