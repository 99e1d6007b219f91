"""Embedded data sets for machines without downloads: little chest radiographs, drawn by a seeded generator.

`phantom_chest` has 14 findings (multilabel) and patients as groups; `phantom_chest_binary` the same images, with any finding as
label; `phantom_pneumonia` other images, whose label is a mottled opacity such as three of the 14 findings have. Mottling is light
and dark alike, its place, direction and phase vary, every image has harmless soft shadows, and images without mottling more often
have stripes of like contrast: so neither brightness at a place nor contrast says much. benchmarks/phantom_difficulty.py measures
how hard the sets are. They are no medical data and prove nothing about medicine.

Only `Generator.random` and the exactly rounded operations + - * / of float64 are used (parabolas for sines, rational rotations, no
sums over arrays), so that every machine draws the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tlray.cache import Places
from tlray.data.raw import Raw, RawSplit, Source
from tlray.registry import TASKS

GENERATOR = 5
"""Version of the drawing; part of the cache key, so that a change is prepared anew."""

SIZE = 64
"""Pixels on a side of the drawn pictures."""

CHEST = {"train": 2800, "val": 400, "test": 800}
PNEUMONIA = {"train": 2800, "val": 400, "test": 800}
"""Images per split."""

_CHUNK = 200  # images drawn at a time, to stay in tens of megabytes


@dataclass(frozen=True)
class Scene:
    """What a finding is drawn onto: body coordinates `x`, `y` (about -1..1) and share of `lung`, each float64 [N, H, W]."""

    x: np.ndarray
    y: np.ndarray
    lung: np.ndarray

    def take(self, rows: np.ndarray) -> "Scene":
        return Scene(self.x[rows], self.y[rows], self.lung[rows])


def _between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniform numbers [N] in 0..1 -> [N, 1, 1] in low..high."""
    return (low + (high - low) * u)[:, None, None]


def _wave(t: np.ndarray) -> np.ndarray:
    """A sine of period 1 made of parabolas, -1..1."""
    t = t - np.floor(t)
    return np.where(t < 0.5, 16 * t * (0.5 - t), -16 * (t - 0.5) * (1 - t))


def _bump(r2: np.ndarray) -> np.ndarray:
    """A smooth hill of squared distance: 1 at 0, 0 from 1 on."""
    inside = np.maximum(1 - r2, 0)
    return inside * inside


def _disc(r2: np.ndarray, edge: float) -> np.ndarray:
    """A disc of squared distance with a short ramp of width `edge` at 1: 1 inside, 0 outside."""
    return np.clip((1 - r2) / edge, 0, 1)


def _turn(x: np.ndarray, y: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate by the angle whose half has tangent `t` (no sine needed: exact everywhere)."""
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return x * cos + y * sin, y * cos - x * sin


def _sign(u: np.ndarray) -> np.ndarray:
    return np.where(u < 0.5, -1.0, 1.0)[:, None, None]


def _spot(scene: Scene, u: np.ndarray, angle: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates round a place in either lung, turned by up to +- `angle` (tangent of the half angle)."""
    x = scene.x - _sign(u[:, 0]) * _between(u[:, 1], 0.28, 0.56)
    y = scene.y - _between(u[:, 2], -0.45, 0.45)
    return _turn(x, y, _between(u[:, 3], -angle, angle))


def _granules(scene: Scene, u: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    """Crossed waves (light and dark grains, mean 0) and the hill they stand on."""
    x, y = _spot(scene, u)
    radius = _between(u[:, 4], 0.5, 0.75)
    x, y = x + 0.05 * _wave(1.4 * y + u[:, 6, None, None]), y + 0.05 * _wave(1.4 * x + u[:, 5, None, None])
    grains = _wave(x / period + u[:, 5, None, None]) * _wave(y / period + u[:, 6, None, None])
    return grains, _bump((x * x + y * y) / (radius * radius)) * (0.1 + 0.9 * scene.lung)


def _atelectasis(scene: Scene, u: np.ndarray) -> np.ndarray:
    x, y = _spot(scene, u, 0.3)
    return _between(u[:, 4], 0.26, 0.38) * _disc(y * y / 0.0036, 0.7) * _disc(x * x / 0.07, 0.3)


def _cardiomegaly(scene: Scene, u: np.ndarray) -> np.ndarray:
    x, y = scene.x - 0.12, scene.y - 0.28
    width, height = _between(u[:, 0], 0.42, 0.54), _between(u[:, 1], 0.32, 0.42)
    return 0.24 * _disc((x * x) / (width * width) + (y * y) / (height * height), 0.3) * scene.lung


def _effusion(scene: Scene, u: np.ndarray) -> np.ndarray:
    side = _sign(u[:, 0])
    outward = scene.x * side - 0.42
    level = _between(u[:, 1], 0.05, 0.35) - 0.5 * outward
    return _between(u[:, 2], 0.26, 0.36) * np.clip((scene.y - level) * 10, 0, 1) * scene.lung * (scene.x * side > 0)


def _infiltration(scene: Scene, u: np.ndarray) -> np.ndarray:
    grains, hill = _granules(scene, u, 0.26)
    return _between(u[:, 7], 0.23, 0.41) * grains * hill


def _mass(scene: Scene, u: np.ndarray) -> np.ndarray:
    x, y = _spot(scene, u, 0.4)
    radius = _between(u[:, 4], 0.18, 0.26)
    return _between(u[:, 5], 0.24, 0.36) * _disc((x * x + 1.4 * y * y) / (radius * radius), 0.4)


def _nodule(scene: Scene, u: np.ndarray) -> np.ndarray:
    x, y = _spot(scene, u)
    return _between(u[:, 4], 0.35, 0.5) * _disc((x * x + y * y) / 0.01, 0.6)


def _pneumonia(scene: Scene, u: np.ndarray) -> np.ndarray:
    grains, hill = _granules(scene, u, 0.32)
    return (_between(u[:, 7], 0.23, 0.41) * (grains + 0.05)) * hill


def _pneumothorax(scene: Scene, u: np.ndarray) -> np.ndarray:
    side = _sign(u[:, 0])
    depth = scene.x * side - _between(u[:, 1], 0.42, 0.56) + 0.5 * (scene.y + 0.2)
    line = _disc(depth * depth / 0.0016, 0.8)
    return (_between(u[:, 2], 0.2, 0.3) * line - 0.12 * (depth > 0)) * scene.lung * (scene.x * side > 0)


def _consolidation(scene: Scene, u: np.ndarray) -> np.ndarray:
    grains, hill = _granules(scene, u, 0.28)
    return _between(u[:, 7], 0.23, 0.41) * (grains + 0.1) * np.minimum(2 * hill, 1)


def _edema(scene: Scene, u: np.ndarray) -> np.ndarray:
    _, y = _turn(scene.x, scene.y, _between(u[:, 0], -0.3, 0.3))
    return _between(u[:, 2], 0.14, 0.26) * _wave(y / 0.22 + u[:, 1, None, None]) * scene.lung  # lines over both lungs


def _emphysema(scene: Scene, u: np.ndarray) -> np.ndarray:
    total = np.zeros_like(scene.x)
    for k in range(3):  # bullae: dark holes with a thin wall
        x, y = _spot(scene, np.roll(u, k, axis=1))
        r2 = (x * x + y * y) / 0.0169
        total += 0.2 * _disc(r2 / 1.8, 0.5) - 0.45 * _disc(r2, 0.5)
    return total


def _fibrosis(scene: Scene, u: np.ndarray) -> np.ndarray:
    x, y = _spot(scene, u)
    stripes = _wave(x / 0.24 + u[:, 5, None, None]) * _bump((x * x + y * y) / _between(u[:, 4], 0.2, 0.45)) * (0.1 + 0.9 * scene.lung)
    return _between(u[:, 7], 0.24, 0.36) * stripes


def _pleural(scene: Scene, u: np.ndarray) -> np.ndarray:
    side = _sign(u[:, 0])
    rim = np.minimum(6 * scene.lung * (1 - scene.lung), 1) * (scene.x * side > 0.45)
    y = scene.y - _between(u[:, 2], -0.3, 0.3)
    return _between(u[:, 1], 0.35, 0.5) * rim * _disc(y * y / 0.09, 0.5)


def _hernia(scene: Scene, u: np.ndarray) -> np.ndarray:
    x, y = scene.x - _between(u[:, 0], -0.15, 0.25), scene.y - _between(u[:, 1], 0.3, 0.55)
    r2 = (x * x + y * y) / _between(u[:, 2], 0.03, 0.05)
    return 0.2 * _disc(r2, 0.3) - _between(u[:, 3], 0.35, 0.5) * _disc(2.5 * r2, 0.4)


FINDINGS: dict[str, Callable[[Scene, np.ndarray], np.ndarray]] = {
    "atelectasis": _atelectasis,
    "cardiomegaly": _cardiomegaly,
    "effusion": _effusion,
    "infiltration": _infiltration,
    "mass": _mass,
    "nodule": _nodule,
    "pneumonia": _pneumonia,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "edema": _edema,
    "emphysema": _emphysema,
    "fibrosis": _fibrosis,
    "pleural thickening": _pleural,
    "hernia": _hernia,
}
"""Finding -> what it adds to the picture: (scene, uniform numbers [N, 8]) -> float64 [N, H, W]."""

TARGET = ("infiltration", "pneumonia", "consolidation")
"""Findings that make an image of phantom_pneumonia positive."""

MIMICS = ("edema", "fibrosis")
"""Findings of like contrast, more frequent in the negative images of phantom_pneumonia, so that contrast gives little away."""


def _anatomy(body: np.ndarray, pose: np.ndarray) -> tuple[Scene, np.ndarray]:
    """Scene and normal picture (float64 [N, H, W], about 0..1) from uniform numbers of patient and exposure, [N, 8] each."""
    axis = (2 * np.arange(SIZE) + 1) / SIZE - 1
    x, y = _turn(axis[None, None, :], axis[None, :, None], _between(pose[:, 0], -0.06, 0.06))
    scale = _between(pose[:, 1], 0.88, 1.1)
    x, y = (x - _between(pose[:, 2], -0.1, 0.1)) / scale, (y - _between(pose[:, 3], -0.1, 0.1)) / scale
    width, height = _between(body[:, 0], 0.29, 0.36), _between(body[:, 1], 0.62, 0.76)
    centre = _between(body[:, 2], 0.4, 0.46)
    away = np.abs(x) - centre + 0.12 * (y + 0.3) * (y < 0.6)
    lung = _disc(away * away / (width * width) + y * y / (height * height), 0.35)
    lung = lung * np.clip(5 * (_between(body[:, 3], 0.58, 0.7) - y + 0.6 * away * away), 0, 1)
    heart_x, heart_y = x - 0.1, y - 0.3
    heart = _disc(heart_x * heart_x / _between(body[:, 4], 0.06, 0.11) + heart_y * heart_y / 0.1, 0.4)
    lung = lung * (1 - 0.85 * heart)
    ribs = _wave((y - 0.9 * away * away + _between(body[:, 6], 0, 0.3)) / _between(body[:, 5], 0.25, 0.31))
    spine = _disc(x * x / 0.02, 0.8)
    torso = _disc(x * x / 0.95 + y * y * y * y / 2.5, 0.3)
    picture = 0.12 + torso * (0.5 - 0.32 * lung + 0.1 * heart * (1 - lung) + 0.07 * spine + 0.045 * ribs * (np.abs(x) > 0.15))
    return Scene(x, y, lung), picture


def _shadows(scene: Scene, u: np.ndarray) -> np.ndarray:
    """Harmless soft shadows, lighter or darker, of every image: [N, 4, 5] uniform numbers."""
    total = np.zeros_like(scene.x)
    for k in range(u.shape[1]):
        x, y = scene.x - _between(u[:, k, 0], -0.7, 0.7), scene.y - _between(u[:, k, 1], -0.7, 0.7)
        total += _between(u[:, k, 2], -0.17, 0.17) * _bump(x * x / _between(u[:, k, 3], 0.1, 0.4) + y * y / _between(u[:, k, 4], 0.1, 0.4))
    return total


def _expose(picture: np.ndarray, u: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Contrast, brightness, tone curve and grain of one exposure -> uint8 [N, H, W]."""
    picture = np.clip(picture * _between(u[:, 4], 0.75, 1.2) + _between(u[:, 5], -0.08, 0.14), 0, 1)
    picture = picture + _between(u[:, 6], -0.35, 0.35) * picture * (1 - picture)
    picture = picture + _between(u[:, 7], 0.04, 0.1) * (noise[0] + noise[1] - 1)
    return np.floor(np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw(present: np.ndarray, patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Radiographs, uint8 [N, H, W], with the findings `present`, bool [N, 14]; images of one of `patients`, [N], share anatomy."""
    count = len(present)
    body = rng.random((int(patients.max()) + 1, 8))[patients]
    images = np.empty((count, SIZE, SIZE), np.uint8)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        here = present[rows]
        pose, shadows = rng.random((len(here), 8)), rng.random((len(here), 4, 5))
        details = rng.random((len(here), len(FINDINGS), 8))
        scene, picture = _anatomy(body[rows], pose)
        picture = picture + _shadows(scene, shadows)
        for k, add in enumerate(FINDINGS.values()):
            (ill,) = here[:, k].nonzero()
            picture[ill] += add(scene.take(ill), details[ill, k])
        images[rows] = _expose(picture, pose, rng.random((2, len(here), SIZE, SIZE)))
    return images


def _rng(*stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([GENERATOR, *stream]))


def _members(names: tuple[str, ...]) -> np.ndarray:
    """Which of the 14 findings are among `names`: bool [14]."""
    return np.array([name in names for name in FINDINGS])


def _chest_split(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Findings (bool [N, 14]) and patients (int64 [N], from 0) of `count` images: one to four images a patient, most patients ill.

    Half of the patients are inflamed: only they have findings of TARGET, often several, and seldom those of MIMICS.
    """
    sizes = 1 + np.floor(4 * rng.random(count)).astype(np.int64)
    patients = np.repeat(np.arange(count), sizes)[:count]
    ill, inflamed = (rng.random(count) < 0.7)[patients, None], (rng.random(count) < 0.5)[patients, None]
    often = np.where(_members(TARGET), 0.3 * inflamed, np.where(_members(MIMICS), np.where(inflamed, 0.05, 0.25), 0.08))
    chronic = rng.random((count, len(FINDINGS)))[patients] < often
    acute = rng.random((count, len(FINDINGS))) < often
    return (chronic | acute) & ill, patients


def _pneumonia_split(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Findings (bool [N, 14]) and label (int64 [N]) of `count` images: half have some of TARGET, the others more often MIMICS."""
    labels = rng.random(count) < 0.5
    often = np.where(_members(MIMICS), np.where(labels, 0.15, 0.45)[:, None], 0.1)
    others = rng.random((count, len(FINDINGS))) < often
    lot = np.where(_members(TARGET), rng.random((count, len(FINDINGS))), 2)
    first = np.arange(len(FINDINGS)) == lot.argmin(axis=1)[:, None]
    second = rng.random((count, len(FINDINGS))) < 0.25
    present = np.where(_members(TARGET), labels[:, None] & (first | second), others)
    return present, labels.astype(np.int64)


def _chest() -> dict[str, RawSplit]:
    splits, first = {}, 0
    for stream, (name, count) in enumerate(CHEST.items()):
        rng = _rng(14, stream)
        present, patients = _chest_split(count, rng)
        splits[name] = RawSplit(draw(present, patients, rng), present.astype(np.uint8), patients + first)
        first += int(patients.max()) + 1
    return splits


def _chest_binary() -> dict[str, RawSplit]:
    return {name: RawSplit(each.images, np.asarray(each.labels.any(axis=1), np.int64), each.groups) for name, each in _chest().items()}


def _pneumonia_splits() -> dict[str, RawSplit]:
    splits = {}
    for stream, (name, count) in enumerate(PNEUMONIA.items()):
        rng = _rng(2, stream)
        present, labels = _pneumonia_split(count, rng)
        splits[name] = RawSplit(draw(present, np.arange(count), rng), labels)
    return splits


@TASKS.register("phantom_chest", "phantom_chest_binary", "phantom_pneumonia")
def phantom(spec: str, size: int, places: Places) -> Source:
    """The embedded data set named `spec`; drawn when loaded, a matter of seconds, and needs no file."""
    kind, classes, splits, what = {
        "phantom_chest": ("multilabel", tuple(FINDINGS), _chest, "14 findings"),
        "phantom_chest_binary": ("binary", ("no finding", "finding"), _chest_binary, "any of 14 findings"),
        "phantom_pneumonia": ("binary", ("normal", "pneumonia"), _pneumonia_splits, "mottled opacities among other findings"),
    }[spec]
    source = {
        "phantom": True,
        "description": f"drawn by tlray's seeded generator, version {GENERATOR}: chest phantoms, {what}; no medical data",
        "size": SIZE,
    }
    return Source(key=f"{spec}-{GENERATOR}", name=spec, load=lambda: Raw(kind, classes, splits(), source))
