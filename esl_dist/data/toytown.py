"""Toytown: drawn street scenes with labels, for unsupervised domain adaptation where no real data can be had.

Adaptation methods are judged on pairs of data sets that are large, licensed and slow to train on. Toytown is a small
stand-in: the same kind of streets in two domains, a labelled *source* in clear daylight and a *target* whose light,
colours, surfaces and camera differ, so that a network trained on the source alone loses clearly on the target while
the world to be recognised stays the same. It is drawn from a seed, the same bytes every time.

The label values are nine classes of Cityscapes in this order::

    0 road   1 sidewalk   2 building   3 pole   4 traffic sign   5 vegetation   6 sky   7 person   8 car

and 255 for unlabelled pixels (the bonnet of the own car).

A scene is a list of flat faces in metres (x to the right, y up, z ahead of the camera, which stands above the origin),
painted from far to near. This module builds the streets, which are of the same kind in both domains; how a domain's
camera sees them, and with it the domain gap, is the matter of `esl_dist.data.toytown_looks`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esl_dist.data.images import encode_png
from esl_dist.data.toytown_looks import CIRCLE, LOOKS, RGB, Face, Look, Points, photograph, shaded
from esl_dist.files import whole_file

CLASSES = ("road", "sidewalk", "building", "pole", "traffic sign", "vegetation", "sky", "person", "car")
DOMAINS = ("source", "target")
SPLITS = ("train", "val")
MIN_WIDTH, MIN_HEIGHT = 64, 32

ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, _, PERSON, CAR = range(len(CLASSES))

NEAR, FAR = 1.5, 130.0  # metres; the ground begins and the street ends there

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Street:
    """Cross-section of a street: metres to the right of the camera, from the left pavement to the right one."""

    left: float
    right: float
    pavement: float
    verge: float

    def kerb(self, side: int) -> float:
        """Return where the road ends on the left (side -1) or on the right (side 1)."""
        return self.right if side > 0 else self.left


def draw_scene(
    domain: str, split: str, index: int, *, seed: int, width: int = 192, height: int = 96
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one scene, which depends on the arguments alone.

    Args:
        domain: one of `DOMAINS`.
        split: "train" or "val"; the same index shows different streets in different splits.
        index: number of the scene, from 0.
        seed: number of the data set, from 0.
        width: of the picture in pixels, at least 64.
        height: of the picture in pixels, at least 32; everything in the scene is scaled by it.

    Returns:
        The picture, BGR, height x width x 3, and its label values, height x width, 0..8 or 255.

    Raises:
        ValueError: for an unknown domain or split, a negative index or seed, or too small a picture.
    """
    _require_known("domain", domain, DOMAINS)
    _require_known("split", split, SPLITS)
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        raise ValueError(f"a scene needs {MIN_WIDTH}x{MIN_HEIGHT} pixels or more, not {width}x{height}")
    key = [seed, DOMAINS.index(domain), SPLITS.index(split), index]
    if min(key) < 0:
        raise ValueError(f"seed and index start at 0, not at {seed} and {index}")
    # Two streams, so that a change of the look or of the size leaves the street as it is.
    layout, film = (np.random.default_rng([*key, stream]) for stream in range(2))
    look = LOOKS[domain]
    return photograph(_scene(look, layout), look, width, height, layout, film)


def write_toytown(
    root: Path,
    *,
    seed: int,
    counts: Mapping[str, int],
    width: int = 192,
    height: int = 96,
    progress: Progress = iter,
) -> None:
    """Write scenes as PNG files `root/<domain>_<split>/images/00000.png` and `.../labels/00000.png`.

    A file appears under its name only when it is complete, so an interrupted run leaves no broken picture behind.

    Args:
        root: folder of the data set, made if need be.
        seed: number of the data set, from 0.
        counts: number of scenes by `<domain>_<split>`, for instance "source_train" or "target_val".
        width: of the pictures in pixels, at least 64.
        height: of the pictures in pixels, at least 32.
        progress: wraps the iterable of scenes, for instance to show a bar.

    Raises:
        ValueError: for an unknown split, a negative seed, or too small a picture.
        OSError: if a file cannot be written.
    """
    known = {f"{domain}_{split}": (domain, split) for domain in DOMAINS for split in SPLITS}
    for name in counts:
        _require_known("split", name, known)
    for name, index in progress([(name, index) for name, count in counts.items() for index in range(count)]):
        domain, split = known[name]
        picture, labels = draw_scene(domain, split, index, seed=seed, width=width, height=height)
        for kind, image in (("images", picture), ("labels", labels)):
            with whole_file(root / name / kind / f"{index:05d}.png") as file:
                file.write(encode_png(image))


def _require_known(kind: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(names)}")


def _scene(look: Look, rng: np.random.Generator) -> list[Face]:
    """All faces of a random street, from far to near."""
    road = rng.uniform(7.0, 9.5)
    right = rng.uniform(2.4, 3.6)
    street = Street(right - road, right, rng.uniform(2.6, 4.0), rng.choice([0.0, 1.5, 2.5]))
    things = [*_trees(street, look, rng), *_furniture(street, look, rng), *_people(street, look, rng)]
    things += _traffic(street, look, rng)
    # Nothing behind the building line can hide what stands before it, so the buildings come first as a whole.
    faces = [*_ground(street, look, rng), *_backdrop(look, rng)]
    faces += [face for side in (-1, 1) for face in _row_of_buildings(street, side, look, rng)]
    shadows = [face for thing in things for face in thing if face.label is None]
    solid = sorted(things, key=lambda thing: -min(float(face.corners[:, 2].min()) for face in thing))
    return [*faces, *shadows, *(face for thing in solid for face in thing if face.label is not None)]


def _colour(look: Look, material: str, rng: np.random.Generator, spread: float = 0.06) -> RGB:
    choices = look.palette[material]
    return shaded(choices[rng.integers(len(choices))], 1.0 + spread * rng.uniform(-1.0, 1.0))


def _upright(x: float, z: float, outline: Points) -> Points:
    """Stand a drawing (n x 2: metres to the right of x, metres above the ground) up at the distance z."""
    return np.column_stack([outline[:, 0] + x, outline[:, 1], np.full(len(outline), z)])


def _box(x: float, z: float, low: float, high: float, half: float) -> Points:
    return _upright(x, z, np.array([(-half, low), (half, low), (half, high), (-half, high)]))


def _disc(x: float, y: float, z: float, radius: float) -> Points:
    return _upright(x, z, np.maximum(CIRCLE * radius + [0.0, y], [-np.inf, 0.0]))  # nothing grows below the ground


def _floor(x0: float, x1: float, z0: float, z1: float) -> Points:
    return np.array([(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)])


def _wall(x: float, z0: float, z1: float, low: float, high: float) -> Points:
    return np.array([(x, low, z0), (x, low, z1), (x, high, z1), (x, high, z0)])


def _shadow(x: float, z: float, half: float, deep: float, height: float, look: Look) -> Face:
    """Shadow on the ground of a thing that is `2 * half` wide, `deep` long and `height` high: metres."""
    slant = look.shadow_length * height
    base = _floor(x - half, x + half, max(z, NEAR), z + deep)
    base[2:, 0] += slant
    base[1, 0] += slant * (deep > 1.0)
    return Face(base, None, (0, 0, 0))


def _ground(street: Street, look: Look, rng: np.random.Generator) -> Iterator[Face]:
    far = 3.0 * FAR
    yield Face(_floor(-far, far, NEAR, far), VEGETATION, _colour(look, "grass", rng))
    paving = _colour(look, "pavement", rng)
    for side in (-1, 1):
        kerb = street.kerb(side)
        yield Face(_floor(kerb, kerb + side * street.pavement, NEAR, far), SIDEWALK, paving)
        yield Face(_floor(kerb, kerb + side * 0.25, NEAR, far), SIDEWALK, look.palette["kerb"][0])
    yield Face(_floor(street.left, street.right, NEAR, far), ROAD, _colour(look, "road", rng))
    marking = look.palette["marking"][0]
    middle = 0.5 * (street.left + street.right)
    if rng.random() < 0.75:
        for z in np.arange(NEAR + rng.uniform(0.0, 6.0), 70.0, 6.0):
            yield Face(_floor(middle - 0.08, middle + 0.08, z, z + 3.0), ROAD, marking)
    if rng.random() < 0.3:
        z = rng.uniform(8.0, 22.0)
        for x in np.arange(street.left + 0.4, street.right - 0.6, 1.0):
            yield Face(_floor(x, x + 0.5, z, z + 3.0), ROAD, marking)


def _backdrop(look: Look, rng: np.random.Generator) -> Iterator[Face]:
    """What closes the view at the end of the street: houses or trees, with gaps that show the sky."""
    for x in np.arange(-150.0, 150.0, 12.0):
        if rng.random() < 0.45:
            wall = _colour(look, "facade", rng)
            yield Face(_box(x, FAR, 0.0, rng.uniform(4.0, 13.0), rng.uniform(5.0, 9.0)), BUILDING, wall)
        else:
            yield Face(_disc(x, 1.5, FAR, rng.uniform(4.0, 8.0)), VEGETATION, _colour(look, "leaf", rng))


def _row_of_buildings(street: Street, side: int, look: Look, rng: np.random.Generator) -> list[Face]:
    line = street.kerb(side) + side * (street.pavement + street.verge)
    light = rng.uniform(0.8, 1.05)
    z = NEAR + rng.uniform(0.0, 6.0)
    row: list[list[Face]] = []
    while z < FAR - 10.0:
        bays = int(rng.integers(2, 5))
        row.append(list(_building(line, side, z, bays, light, look, rng)))
        z += 4.0 * bays
        if rng.random() < 0.45:
            gap = rng.uniform(3.0, 9.0)
            x = line + side * rng.uniform(1.0, 3.0)
            row.append(_crown(x, z + 0.5 * gap, 0.0, rng.uniform(0.9, 1.8), look, rng))
            z += gap
    return [face for block in reversed(row) for face in block]


def _building(
    line: float, side: int, z: float, bays: int, light: float, look: Look, rng: np.random.Generator
) -> Iterator[Face]:
    """A house along the street in bays of four metres: gable wall, roof, then the facade with its windows."""
    storeys = int(rng.choice([1, 2, 2, 3, 4]))
    top = 3.0 * storeys + 0.8
    wall = shaded(_colour(look, "facade", rng), light)
    roof = shaded(_colour(look, "roof", rng), light)
    back = line + side * 9.0
    end = z + 4.0 * bays
    yield Face(_box(0.5 * (line + back), z, 0.0, top, 4.5), BUILDING, shaded(wall, 0.82))
    if rng.random() < 0.6:
        ridge = line + side * 4.5
        rise = top + 2.2
        slope = np.array([(line, top, z), (line, top, end), (ridge, rise, end), (ridge, rise, z)])
        gable = np.array([(line, top, z), (ridge, rise, z), (back, top, z)])
        yield Face(gable, BUILDING, shaded(wall, 0.82))
        yield Face(slope, BUILDING, roof)
    panes = [shaded(pane, light) for pane in look.palette["window"]]
    half = rng.uniform(0.6, 1.2)
    for bay in np.arange(bays)[::-1]:
        start = z + 4.0 * bay
        yield Face(_wall(line, start, start + 4.0, 0.0, top), BUILDING, wall)
        for storey in range(storeys):
            pane = panes[rng.integers(len(panes))]
            sill = 3.0 * storey + 1.0
            yield Face(_wall(line, start + 2.0 - half, start + 2.0 + half, sill, sill + 1.5), BUILDING, pane)
    yield Face(_wall(line, z, end, top - 0.35, top), BUILDING, roof)


def _crown(x: float, z: float, y: float, radius: float, look: Look, rng: np.random.Generator) -> list[Face]:
    """A cloud of leaves around the height y: dark discs below and behind, bright ones above and in front."""
    leaf = _colour(look, "leaf", rng)
    offsets = rng.uniform(-0.75, 0.75, size=(8, 2)) * radius
    return [
        Face(_disc(x + dx, y + radius + dy, z, radius * rng.uniform(0.4, 0.75)), VEGETATION, shaded(leaf, light))
        for (dx, dy), light in zip(offsets[offsets[:, 1].argsort()], np.linspace(0.7, 1.2, 8), strict=True)
    ]


def _in_view(x: float, farthest: float, rng: np.random.Generator) -> float:
    """A distance at which a thing `x` metres off the camera's axis is seen, more often near than far."""
    nearest = max(6.0, 1.75 * abs(x))
    return float(nearest + (farthest - nearest) * rng.random() ** 1.7)


def _side(rng: np.random.Generator) -> int:
    return int(rng.choice([-1, 1]))


def _trees(street: Street, look: Look, rng: np.random.Generator) -> Iterator[list[Face]]:
    for _ in range(rng.integers(2, 7)):
        side = _side(rng)
        x = street.kerb(side) + side * (street.pavement + 0.5 * street.verge - 0.3)
        z = _in_view(x, 70.0, rng)
        stem = rng.uniform(1.8, 2.8)
        trunk = Face(_box(x, z, 0.0, stem + 0.8, 0.16), VEGETATION, _colour(look, "trunk", rng))
        shadow = _shadow(x, z, 0.9, 1.2, 3.0, look)
        yield [shadow, trunk, *_crown(x, z, stem, rng.uniform(1.1, 1.9), look, rng)]


def _furniture(street: Street, look: Look, rng: np.random.Generator) -> Iterator[list[Face]]:
    """Street lamps and traffic signs along the kerb."""
    for _ in range(rng.integers(2, 5)):
        yield _lamp_post(street, _side(rng), look, rng)
    for _ in range(rng.integers(2, 5)):
        yield _traffic_sign(street, _side(rng), look, rng)


def _lamp_post(street: Street, side: int, look: Look, rng: np.random.Generator) -> list[Face]:
    x = street.kerb(side) + side * 0.5
    z = _in_view(x, 45.0, rng)
    top = rng.uniform(5.0, 7.0)
    metal = _colour(look, "pole", rng)
    arm = x - side * 0.7
    return [
        _shadow(x, z, 0.12, 0.6, top, look),
        Face(_box(x, z, 0.0, top, 0.12), POLE, metal),
        Face(_box(arm, z, top - 0.16, top, 0.7), POLE, metal),
        Face(_box(arm - side * 0.5, z, top - 0.34, top - 0.16, 0.3), POLE, look.palette["lamp"][0]),
    ]


def _traffic_sign(street: Street, side: int, look: Look, rng: np.random.Generator) -> list[Face]:
    x = street.kerb(side) + side * rng.uniform(0.4, 0.8)
    z = _in_view(x, 30.0, rng)
    radius = rng.uniform(0.4, 0.52)
    centre = rng.uniform(2.3, 3.0)
    corners = int(rng.choice([3, 4, 14]))
    turn = np.linspace(0.0, 2.0 * math.pi, corners, endpoint=False) + (math.pi / 4 if corners == 4 else math.pi / 2)
    plate = np.column_stack([np.cos(turn), np.sin(turn)]) * (1.25 if corners < 14 else 1.0)
    return [
        _shadow(x, z, 0.08, 0.5, centre, look),
        Face(_box(x, z, 0.0, centre, 0.07), POLE, _colour(look, "pole", rng)),
        Face(_upright(x, z, plate * radius + [0.0, centre]), SIGN, _colour(look, "sign", rng)),
        Face(_upright(x, z, plate * radius * 0.5 + [0.0, centre]), SIGN, look.palette["sign mark"][0]),
    ]


def _people(street: Street, look: Look, rng: np.random.Generator) -> Iterator[list[Face]]:
    for number in range(rng.integers(3, 8)):
        side = _side(rng)
        x = street.kerb(side) + side * rng.uniform(0.5, street.pavement - 0.4)
        yield _person(x, _in_view(x, 15.0 if number == 0 else 40.0, rng), look, rng)


def _person(x: float, z: float, look: Look, rng: np.random.Generator) -> list[Face]:
    size = rng.uniform(0.88, 1.08)
    step = rng.uniform(0.0, 0.32)
    coat, trousers, skin = (_colour(look, material, rng) for material in ("coat", "trousers", "skin"))
    hem, shoulder = rng.uniform(0.7, 0.95), 1.46
    legs = [np.array([(-0.13, 0.9), (0.13, 0.9), (s + 0.1, 0.0), (s - 0.1, 0.0)]) for s in (-step - 0.06, step + 0.06)]
    body = np.array([(-0.24, hem), (0.24, hem), (0.27, shoulder - 0.1), (0.12, shoulder), (-0.12, shoulder)])
    body = np.vstack([body, (-0.27, shoulder - 0.1)])
    arms = [np.array([(s * 0.24, 1.4), (s * 0.38, 0.85), (s * 0.26, 0.82), (s * 0.18, 1.3)]) for s in (-1, 1)]
    parts = [(leg, trousers) for leg in legs] + [(arm, shaded(coat, 0.85)) for arm in arms]
    parts += [(body, coat), (CIRCLE * [0.13, 0.17] + [0.0, 1.62], skin)]
    drawn = [Face(_upright(x, z, outline * size), PERSON, colour) for outline, colour in parts]
    return [_shadow(x, z, 0.25, 0.5, 1.7, look), *drawn]


def _traffic(street: Street, look: Look, rng: np.random.Generator) -> Iterator[list[Face]]:
    """Parked cars along both kerbs, oncoming cars on the left and, in some scenes, a car ahead."""
    lanes = [(street.left + 1.1, 0.5), (street.right - 1.0, 0.3), (0.5 * street.left + 0.4, 0.3), (0.2, 0.35)]
    for lane, (x, chance) in enumerate(lanes):
        z = max(8.0, 1.6 * abs(x)) + (rng.uniform(0.0, 10.0) if lane != 3 else rng.uniform(4.0, 20.0))
        while z < 60.0:
            if rng.random() < chance:
                yield _car(x + rng.uniform(-0.15, 0.15), z, look, rng)
            z += rng.uniform(6.5, 14.0) if lane < 2 else rng.uniform(14.0, 30.0)


def _car(x: float, z: float, look: Look, rng: np.random.Generator) -> list[Face]:
    """A car seen from its end: the flank that faces the camera, then the near end, then its lights and wheels."""
    half, length = 0.88, rng.uniform(3.8, 4.6)
    belt, roof = 0.92, rng.choice([1.42, 1.5, 1.75])
    paint = _colour(look, "paint", rng)
    glass, tyre = look.palette["glass"][0], look.palette["tyre"][0]
    light = look.palette["light"][rng.integers(2)]
    flank = x - math.copysign(half, x)
    cabin = np.array(
        [(flank, belt, 0.1), (flank, roof, 0.5), (flank, roof, 0.65 * length), (flank, belt, 0.8 * length)]
    )
    pane = cabin * [1.0, 1.0, 0.86] + [0.0, 0.0, 0.25]
    pane[1:3, 1] -= 0.1
    ahead = np.array([0.0, 0.0, 1.0])
    end = np.array([(-half, belt), (half, belt), (0.82 * half, roof), (-0.82 * half, roof)])
    rear = np.array([(-0.8 * half, belt + 0.04), (0.8 * half, belt + 0.04), (0.7 * half, roof - 0.1)])
    rear = np.vstack([rear, (-0.7 * half, roof - 0.1)])
    wheel = np.column_stack([np.full(len(CIRCLE), flank), 0.33 + 0.33 * CIRCLE[:, 1], 0.33 * CIRCLE[:, 0]])
    wheels = [Face(wheel + (z + far) * ahead, CAR, tyre) for far in (length - 0.8, 0.8)]
    lamps = [Face(_box(x + s * 0.7, z, 0.66, 0.84, 0.14), CAR, light) for s in (-1, 1)]
    tyres = [Face(_box(x + s * 0.68, z, 0.0, 0.4, 0.13), CAR, tyre) for s in (-1, 1)]
    return [
        _shadow(x, z - 0.3, half + 0.15, length + 0.5, 0.6, look),
        Face(_wall(flank, z, z + length, 0.25, belt), CAR, shaded(paint, 0.85)),
        Face(cabin + z * ahead, CAR, shaded(paint, 0.8)),
        Face(pane + z * ahead, CAR, glass),
        *wheels,
        *tyres,
        Face(_upright(x, z, end), CAR, shaded(paint, 0.95)),
        Face(_upright(x, z, rear), CAR, glass),
        Face(_box(x, z, 0.25, belt, half), CAR, paint),
        Face(_box(x, z, 0.42, 0.58, 0.26), CAR, look.palette["sign mark"][0]),
        *lamps,
    ]
