"""How many groups group normalisation has."""

LEAST_CHANNELS = 4  # of a group, as in networks of 128 channels in 32 groups


def groups_of(width: int, *, of: str) -> int:
    """Return the most groups, 32 at most, that part ``width`` channels into groups of four or more.

    A group of one channel would lose its mean, and with it how bright an image is: a network of such groups can neither
    see nor say it, and whatever offset the noise has stays in what it draws.

    Raises:
        ValueError: the width is no multiple of 4; ``of`` is named.
    """
    if width < LEAST_CHANNELS or width % 4:
        raise ValueError(f"width {width} of the {of} must be a multiple of 4")
    return next(g for g in (32, 16, 8, 4, 2, 1) if width % g == 0 and width // g >= LEAST_CHANNELS)
