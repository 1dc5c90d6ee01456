"""Chest phantoms: drawn, radiograph-like images whose findings, masks and boxes are known exactly.

The embedded default data set. A patient has a frame (chest, heart, ribs, texture) and a tendency to each finding;
every image is a study of that patient with its own pose, exposure and findings. A number is drawn from a counter
(seed, patient, study), so any image can be drawn alone, in any order and in any process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from jointdiff.data.source import Augmentations, DataError, Facts, LabelSpec, Region, Sample, Source
from jointdiff.seeding import rng

FINDINGS = ("nodule", "cardiomegaly", "effusion")

SOURCE = Source(
    name="phantom",
    title="Chest phantoms (drawn)",
    labels=LabelSpec("multi_label", FINDINGS),
    channels=1,
    licence="Apache-2.0",
    cite="drawn by jointdiff.data.sources.phantom",
    # No flips: they would move the heart to the other side. Strong views are those of natural images, so that phantoms
    # show FixMatch and its kin as published. By what is drawn, a nodule of a tenth of the side above all, MEDICAL would
    # be the policy; tests/unit/test_augment.py measures how often either hides as much.
    augmentations=Augmentations(horizontal_flip=False, vertical_flip=False),
    options={"patients": 600, "images_per_patient": 4, "seed": 0},
)

SUPERSAMPLING = 4  # drawn pixels per side of a published pixel; edges are soft, so less is enough for large images
LEAST = 16  # pixels a side at which every finding still covers a pixel
VISIBLE = 0.015  # share of the image that an effusion covers at least
TENDENCY = 0.35  # a + b of the Beta distribution of a patient's tendencies: small, so findings mostly stay or stay away


def read(
    raw: Path | None = None, *, size: int, patients: int = 600, images_per_patient: int = 4, seed: int = 0
) -> Iterator[Callable[[], Sample]]:
    """Yield the studies of every patient, drawn at ``size`` pixels a side; nothing is read from ``raw``.

    Raises:
        DataError: a nodule would be smaller than a pixel.
    """
    if size < LEAST:
        raise DataError(f"datasets: phantoms of size {size}: a nodule is no pixel there; draw them at {LEAST} or more")
    for patient in range(patients):
        for study in range(images_per_patient):
            yield partial(draw, seed, patient, study, size=size)


def describe(*, patients: int, images_per_patient: int, seed: int) -> Source:
    """Return the data set with as many samples and patients as asked for."""
    return replace(SOURCE, facts=Facts(samples=patients * images_per_patient, groups=patients))


@dataclass(frozen=True)
class Frame:
    """A patient's anatomy, in units of half the image side, x to the right and y down from the centre."""

    half_width: float  # W of the rib cage
    half_height: float
    centre: float  # y of the rib cage's centre
    taper: float  # how much narrower the top is
    mediastinum: float  # half width
    angle_depth: tuple[float, float]  # y of the costophrenic angle, image left and right
    dome: tuple[float, float]  # height of the diaphragm's domes above it
    heart_ratio: float  # a healthy heart's share of the chest's width
    heart_tilt: float  # radians
    heart_aspect: float
    rib_spacing: float
    rib_phase: float
    rib_density: float
    clavicle_slope: float
    breast: float  # density of the soft-tissue shadow over the bases
    fat: float  # width of the soft tissue around the cage
    texture: np.ndarray  # (3, 24, 24) standard normal
    tendency: tuple[float, float, float]  # probability of each finding in a study


def draw_frame(seed: int, patient: int) -> Frame:
    """Draw a patient's anatomy and tendencies."""
    g = rng(seed, "patient", patient)
    heart_failure = _tendency(g, 0.30)
    angle, dome = g.uniform(0.58, 0.74), g.uniform(0.20, 0.30)
    return Frame(
        half_width=g.uniform(0.76, 0.86),
        half_height=g.uniform(0.88, 0.98),
        centre=g.uniform(0.06, 0.14),
        taper=g.uniform(0.10, 0.20),
        mediastinum=g.uniform(0.13, 0.18),
        angle_depth=(angle, angle + g.uniform(-0.02, 0.05)),
        dome=(dome, dome * g.uniform(0.75, 0.95)),
        heart_ratio=g.uniform(0.39, 0.48),
        heart_tilt=g.uniform(0.45, 0.75),
        heart_aspect=g.uniform(0.70, 0.82),
        rib_spacing=g.uniform(0.185, 0.225),
        rib_phase=g.uniform(),
        rib_density=g.uniform(0.10, 0.20),
        clavicle_slope=g.uniform(0.10, 0.22),
        breast=g.choice([0.0, 1.0], p=[0.6, 0.4]) * g.uniform(0.10, 0.25),
        fat=g.uniform(0.10, 0.20),
        texture=g.standard_normal((3, 24, 24), dtype=np.float32),
        # Fluid gathers more often where the heart fails: findings are nearly, not quite, independent.
        tendency=(_tendency(g, 0.30), heart_failure, _tendency(g, 0.24 + 0.18 * heart_failure)),
    )


def _tendency(g: np.random.Generator, mean: float) -> float:
    return float(g.beta(TENDENCY * mean, TENDENCY * (1 - mean)))


def draw(seed: int, patient: int, study: int, *, size: int) -> Sample:
    """Draw one study: image (size, size) uint8, three labels, and a mask and a box per finding present.

    The anatomy is the same at every ``size``; only the grain of the film is drawn anew.
    """
    frame = draw_frame(seed, patient)
    g = rng(seed, "study", patient, study)
    present = g.uniform(size=3) < frame.tendency
    canvas = Canvas(frame, g, size * max(2, min(SUPERSAMPLING, 64 * SUPERSAMPLING // size)))
    density, regions = canvas.compose(*present)
    # Beer-Lambert: what is denser is brighter, and what lies behind the heart is hardly seen.
    film = 1.0 - np.exp(-g.uniform(0.85, 1.15) * np.maximum(density, 0))
    film = _area_average(film, size) ** g.uniform(0.85, 1.20) * g.uniform(0.92, 1.08) + g.uniform(-0.03, 0.03)
    film += g.uniform(0.006, 0.022) * g.standard_normal((size, size), dtype=np.float32)
    masks = {name: _area_average(region, size) >= 0.5 for name, region in regions.items()}
    return Sample(
        sample_id=f"{patient:05d}-{study:02d}",
        image=(np.clip(film, 0, 1) * 255).round().astype(np.uint8),
        labels=present.astype(float).tolist(),
        group=f"patient-{patient:05d}",
        regions=[Region(name, mask=mask, box=_box(mask)) for name, mask in masks.items()],
    )


class Canvas:
    """The fields of one study, each (n, n) float32, drawn in the patient's coordinates after a pose jitter."""

    def __init__(self, frame: Frame, g: np.random.Generator, n: int) -> None:
        self.frame, self.g, self.n = frame, g, n
        angle, scale = g.normal(0, 0.03), g.uniform(0.95, 1.06)
        shift_x, shift_y = g.uniform(-0.06, 0.06, size=2)
        self.breath = g.uniform(-0.05, 0.05)  # the diaphragm's height in this study
        x, y = _grid(n)
        c, s = math.cos(angle) * scale, math.sin(angle) * scale
        self.u = c * x - s * y + np.float32(shift_x)
        self.v = s * x + c * y + np.float32(shift_y)
        self.w = np.abs(self.u)
        self.q = self.w * np.float32(1 / frame.half_width)

    def compose(self, nodule: bool, cardiomegaly: bool, effusion: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the density (n, n) and, for each finding present, how much of it covers each pixel, in [0, 1]."""
        frame, g, u, v, w = self.frame, self.g, self.u, self.v, self.w
        ratio = g.uniform(0.53, 0.66) if cardiomegaly else frame.heart_ratio + g.normal(0, 0.006)
        heart_shape = self._heart_shape(ratio)
        heart = _step(self._heart_distance(heart_shape, u, v), 0.05)
        cage = _step(self._cage_distance(self.q, v), 0.04)
        lung = cage * _step(w - self._mediastinum(v), 0.06) * _step(self._diaphragm(u) - v, 0.035)

        air = lung * (1.0 - 0.55 * heart)  # the heart displaces lung, but some lies before and behind it

        density = 0.85 * self._body() * (1.0 - 0.72 * air)
        density += np.maximum(0.38 * heart, 0.30 * self._midline()) + self._bones(cage) + self._texture(air)
        regions: dict[str, np.ndarray] = {}
        fluid_shape = None
        # Drawn whether or not it is shown, so that a finding changes nothing else in the image.
        side, level, rise = g.choice([-1.0, 1.0]), g.uniform(0.20, 0.48), g.uniform(0.14, 0.26)
        opacity, nodule_draws = g.uniform(0.42, 0.62), g.uniform(size=(64, 3))
        if effusion:
            # Behind a heart that reaches the wall nothing would be seen: the fluid is then on the other side or higher.
            for where, raised in ((side, 0.0), (-side, 0.0), (-1.0, 0.1), (-1.0, 0.2)):
                fluid_shape = (where, level - 0.65 - raised + self._angle(where), rise)
                fluid = lung * _step(self._fluid_distance(fluid_shape, u, v), 0.16)
                regions["effusion"] = fluid * (1.0 - heart)
                if (regions["effusion"] > 0.5).mean() > VISIBLE:
                    break
            density += opacity * fluid
        if cardiomegaly:
            regions["cardiomegaly"] = heart
        if nodule:
            ball = self._nodule(nodule_draws, heart_shape, fluid_shape)
            density += g.uniform(0.42, 0.62) * ball
            regions["nodule"] = ball
        return density, {name: regions[name] for name in FINDINGS if name in regions}

    # The shapes below take arrays or scalars: pixels to draw, candidates to place a nodule.

    def _cage_distance(self, q: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Approximate signed distance into the rib cage, an egg with its narrow end up."""
        f = self.frame
        y = (v - f.centre) * np.float32(1 / f.half_height)
        return np.float32(f.half_width) * (1.0 - np.sqrt((q * (1.0 - f.taper * y)) ** 2 + y * y))

    def _mediastinum(self, v: np.ndarray) -> np.ndarray:
        return np.float32(self.frame.mediastinum) + 0.5 * np.maximum(-0.52 - v, 0) + 0.06 * np.maximum(v, 0)

    def _angle(self, side: float) -> float:
        return self.frame.angle_depth[int(side > 0)] + self.breath

    def _diaphragm(self, u: np.ndarray) -> np.ndarray:
        """Height of the domes; they fall to the costophrenic angles at the wall."""
        f = self.frame
        t = (np.abs(u) * np.float32(1 / f.half_width) - 0.42) * np.float32(1 / 0.58)
        right = u > 0
        return (
            np.where(right, self._angle(1.0), self._angle(-1.0)) - np.where(right, f.dome[1], f.dome[0]) * (1.0 - t * t)
        ).astype(np.float32)

    def _heart_shape(self, ratio: float) -> tuple[float, float, float, float]:
        """Centre and semi-axes of a tilted ellipse whose width is ``ratio`` of the chest's."""
        f = self.frame
        half = ratio * 0.95 * f.half_width
        c, s = math.cos(f.heart_tilt), math.sin(f.heart_tilt)
        major = half / math.sqrt(c * c + (f.heart_aspect * s) ** 2)
        minor = f.heart_aspect * major
        height = math.sqrt((major * s) ** 2 + (minor * c) ** 2)
        x = half - f.half_width * (0.10 + 0.25 * ratio)
        return x, self._angle(1.0) - 0.10 - height * 0.80, major, minor

    def _heart_distance(self, shape: tuple[float, float, float, float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, y, major, minor = shape
        c, s = math.cos(self.frame.heart_tilt), math.sin(self.frame.heart_tilt)
        along = (c / major) * (u - np.float32(x)) + (s / major) * (v - np.float32(y))
        across = (c / minor) * (v - np.float32(y)) - (s / minor) * (u - np.float32(x))
        return np.float32(minor) * (1.0 - np.sqrt(along * along + across * across))

    def _fluid_distance(self, shape: tuple[float, float, float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Distance below a meniscus that climbs along the wall; far negative on the other side."""
        side, level, rise = shape
        t = np.clip(u * np.float32(side / (0.92 * self.frame.half_width)), 0, 1)
        return np.where(u * side > 0, v - level + rise * t * t * t, -1.0).astype(np.float32)

    def _nodule(
        self, draws: np.ndarray, heart: tuple[float, float, float, float], fluid: tuple[float, float, float] | None
    ) -> np.ndarray:
        """Draw a ball in open lung: the first of the candidates that fits there, else the one that fits best."""
        radius = 0.105 + 0.075 * float(draws[0, 2])  # 1.7 to 2.9 pixels of 32
        x, y = (1.7 * draws[:, 0] - 0.85) * self.frame.half_width, 1.4 * draws[:, 1] - 0.75
        room = np.minimum.reduce(
            [
                self._cage_distance(np.abs(x) / self.frame.half_width, y),
                np.abs(x) - self._mediastinum(y),
                self._diaphragm(x) - y,
                -self._heart_distance(heart, x, y),
                np.full_like(x, 1.0) if fluid is None else -self._fluid_distance(fluid, x, y),
            ]
        )
        fits = room > 1.1 * radius
        best = int(np.argmax(fits)) if fits.any() else int(np.argmax(room))
        dx, dy = self.u - np.float32(x[best]), self.v - np.float32(y[best])
        stretch = np.float32(0.85 + 0.3 * draws[1, 2])
        return _step(radius - np.sqrt(dx * dx * stretch + dy * dy / stretch), 0.05)

    def _body(self) -> np.ndarray:
        """Soft tissue: trunk, shoulders and neck before dark air, thicker towards the belly."""
        f, v, w = self.frame, self.v, self.w
        side = (f.half_width + f.fat) + 0.9 * np.maximum(-0.25 - v, 0) - w
        shoulder = v + 1.02 - 0.45 * np.maximum(w - 0.30, 0)
        body = _step(np.minimum(side, shoulder), 0.05)
        return body * (1.0 + 0.18 * v) * (1.08 - 0.22 * w * w)

    def _midline(self) -> np.ndarray:
        """Great vessels and all that lies before the spine."""
        return _step(self._mediastinum(self.v) - self.w, 0.10)

    def _bones(self, cage: np.ndarray) -> np.ndarray:
        """Spine, ribs, clavicles and scapulae, with the windpipe, the aortic knob and the breasts."""
        f, u, v, w, q = self.frame, self.u, self.v, self.w, self.q
        spine = _step(0.085 - w, 0.03) * (0.8 + 0.2 * np.cos(v * np.float32(2 * math.pi / 0.17)))
        windpipe = _step(0.05 - np.abs(u + 0.01), 0.05) * _step(-0.28 - v, 0.15)
        knob = _step(0.13 - np.hypot(u - np.float32(f.mediastinum), v + 0.30), 0.08)
        density = spine * 0.18 - windpipe * 0.25 + knob * 0.25

        # Ribs behind fall outwards, ribs in front fall inwards and fade where cartilage begins.
        q2 = q * q
        behind = (v - 0.06 * q - 0.30 * q2 * q2) * np.float32(1 / f.rib_spacing) + np.float32(f.rib_phase)
        front = (v + 0.42 * q) * np.float32(1 / (1.15 * f.rib_spacing)) + np.float32(1.7 * f.rib_phase)
        density += (
            np.float32(f.rib_density) * cage * (_bars(behind, 0.42) + 0.55 * _bars(front, 0.38) * _step(q - 0.45, 0.2))
        )

        clavicle = v + 0.62 + np.float32(f.clavicle_slope) * (q - 0.3) - 0.10 * (q - 0.5) ** 2
        density += 0.22 * _step(0.035 - np.abs(clavicle), 0.02) * _step(q - 0.10, 0.05)
        scapula = np.abs(q - 0.98 - 0.25 * (v + 0.35))
        density += 0.10 * _step(0.10 - scapula, 0.06) * _step(0.36 - np.abs(v + 0.38), 0.1)
        if f.breast:
            reach = np.hypot((q - 0.55) * np.float32(1.1), v - 0.30)
            density += np.float32(f.breast) * _step(0.42 - reach, 0.10)
        return density

    def _texture(self, lung: np.ndarray) -> np.ndarray:
        """Vessels that thin out from the hila, the grain of the lung and slow shading."""
        f, v = self.frame, self.v
        coarse, fine, shade = f.texture
        ridge = 1.0 - np.abs(_stretch(coarse[:14, :14], self.n)) * 1.6
        hilum = np.hypot(self.w - 0.27, (v + 0.02) * np.float32(0.8))
        vessels = np.maximum(ridge, 0) ** 2 * (0.24 * np.maximum(1.0 - hilum * 1.7, 0) + 0.03)
        vessels += 0.22 * _step(0.10 - hilum, 0.14)
        grain = 0.030 * _stretch(fine, self.n)
        tilt = _stretch(shade[:4, :4] + self.g.standard_normal((4, 4), dtype=np.float32), self.n)
        return lung * (vessels + grain) + 0.03 * tilt


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    """Rise smoothly from 0 to 1 while ``distance`` goes from -width/2 to width/2."""
    t = distance * np.float32(1 / width)
    t += np.float32(0.5)
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    smooth = t * np.float32(-2.0)
    smooth += np.float32(3.0)
    smooth *= t
    smooth *= t
    return smooth


def _bars(phase: np.ndarray, share: float) -> np.ndarray:
    """Bars that fill ``share`` of every unit of ``phase``, with brighter rims."""
    from_centre = np.abs(phase - np.floor(phase) - np.float32(0.5))
    edge = np.float32(share / 2)
    return _step(edge - from_centre, 0.12) * (0.75 + 0.5 * np.minimum(from_centre / edge, 1))


@lru_cache(maxsize=4)
def _grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in [-1, 1]: x (1, n) and y (n, 1)."""
    axis = ((np.arange(n, dtype=np.float32) + 0.5) * np.float32(2 / n)) - 1
    return axis[None, :], axis[:, None]


def _stretch(values: np.ndarray, n: int) -> np.ndarray:
    """Spread (k, k) values smoothly over (n, n) pixels, as a quadratic B-spline.

    Without a matrix product: its threads cost more than they save here, and its rounding differs between machines.
    """
    first, weights = _spline(n, len(values))
    rows = sum(weights[j][:, None] * values[first + j] for j in range(3))
    return np.asarray(sum(weights[j] * rows[:, first + j] for j in range(3)))


@lru_cache(maxsize=16)
def _spline(n: int, knots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for n pixels the first of the three knots that each lies between (n,) and their weights (3, n)."""
    position = (np.arange(n, dtype=np.float32) + 0.5) / n * (knots - 2) + 0.5
    first = np.clip(np.round(position).astype(int) - 1, 0, knots - 3)
    d = position - (first + 1)  # in [-1/2, 1/2]
    weights = np.stack([0.5 * (0.5 - d) ** 2, 0.75 - d * d, 0.5 * (0.5 + d) ** 2])
    return first, weights.astype(np.float32)


def _area_average(field: np.ndarray, size: int) -> np.ndarray:
    factor = len(field) // size
    return field.reshape(size, factor, size, factor).mean(axis=(1, 3))


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the tight box (x0, y0, x1, y1), x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
