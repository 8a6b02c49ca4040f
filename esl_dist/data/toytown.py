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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esl_dist.config import DOMAINS
from esl_dist.data.images import encode_png
from esl_dist.data.toytown_looks import CIRCLE, LOOKS, RGB, Face, Look, Points, photograph, shaded
from esl_dist.files import whole_file

CLASSES = ("road", "sidewalk", "building", "pole", "traffic sign", "vegetation", "sky", "person", "car")
SPLITS = ("train", "val")
MIN_WIDTH, MIN_HEIGHT = 64, 32

ROAD, SIDEWALK, BUILDING, POLE, SIGN, VEGETATION, _, PERSON, CAR = range(len(CLASSES))

NEAR, FAR = 1.5, 130.0  # metres; the ground begins and the street ends there

Progress = Callable[[Iterable[Any]], Iterable[Any]]


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
    return photograph(_Street(look, layout).faces(), look, width, height, layout, film)


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
        seed, width, height: as `draw_scene` takes them.
        counts: number of scenes by `<domain>_<split>`, for instance "source_train" or "target_val".
        progress: wraps the iterable of scenes, for instance to show a bar.

    Raises:
        ValueError: for an unknown split, a negative seed, or too small a picture.
        OSError: if a file cannot be written.
    """
    known = {f"{domain}_{split}": (domain, split) for domain in DOMAINS for split in SPLITS}
    for name in counts:
        _require_known("split", name, known)
    for name, index in progress([(name, index) for name, count in counts.items() for index in range(count)]):
        picture, labels = draw_scene(*known[name], index, seed=seed, width=width, height=height)
        for kind, image in (("images", picture), ("labels", labels)):
            with whole_file(root / name / kind / f"{index:05d}.png") as file:
                file.write(encode_png(image))


def _require_known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")


def _points(x: ArrayLike, y: ArrayLike, z: ArrayLike) -> Points:
    points = np.empty((max(map(np.size, (x, y, z))), 3))
    points[:, 0], points[:, 1], points[:, 2] = x, y, z
    return points


def _upright(x: float, z: float, outline: Points) -> Points:
    """Stand a drawing (n x 2: metres to the right of x, metres above the ground) up at the distance z."""
    return _points(outline[:, 0] + x, outline[:, 1], z)


def _box(x: float, z: float, low: float, high: float, half: float, half_above: float | None = None) -> Points:
    above = half if half_above is None else half_above
    return _points(np.array([-half, half, above, -above]) + x, [low, low, high, high], z)


def _disc(x: float, y: float, z: float, radius: float) -> Points:
    return _upright(x, z, np.maximum(CIRCLE * radius + [0.0, y], [-np.inf, 0.0]))  # nothing grows below the ground


def _floor(x0: float, x1: float, z0: float, z1: float) -> Points:
    return _points([x0, x1, x1, x0], 0.0, [z0, z0, z1, z1])


def _wall(x: float, z0: float, z1: float, low: float, high: float) -> Points:
    return _points(x, [low, low, high, high], [z0, z1, z1, z0])


class _Street:
    """A random street, and all that stands in it: methods return faces, or the faces of one thing after another."""

    def __init__(self, look: Look, rng: np.random.Generator) -> None:
        self.look, self.rng = look, rng
        road = rng.uniform(7.0, 9.5)
        right = rng.uniform(2.4, 3.6)
        self.kerbs = {-1: right - road, 1: right}  # metres to the right of the camera, by side
        self.pavement, self.verge = rng.uniform(2.6, 4.0), rng.choice([0.0, 1.5, 2.5])

    def faces(self) -> list[Face]:
        """All faces, from far to near."""
        things = [*self.trees(), *self.furniture(), *self.people(), *self.traffic()]
        # Nothing behind the building line can hide what stands before it, so the buildings come first as a whole.
        faces = [*self.ground(), *self.backdrop(), *self.buildings(-1), *self.buildings(1)]
        shadows = [face for thing in things for face in thing if face.label is None]
        solid = sorted(things, key=lambda thing: -min(float(face.corners[:, 2].min()) for face in thing))
        return [*faces, *shadows, *(face for thing in solid for face in thing if face.label is not None)]

    def fixed_colour(self, material: str) -> RGB:
        return self.look.palette[material][0]

    def random_colour(self, material: str) -> RGB:
        choices = self.look.palette[material]
        return shaded(choices[self.rng.integers(len(choices))], 1.0 + 0.06 * self.rng.uniform(-1.0, 1.0))

    def side(self) -> int:
        return int(self.rng.choice([-1, 1]))

    def distance(self, x: float, farthest: float) -> float:
        """Of a thing `x` metres off the camera's axis that is to be seen: more often near than far."""
        nearest = max(6.0, 1.75 * abs(x))
        return float(nearest + (farthest - nearest) * self.rng.random() ** 1.7)

    def shadow(self, x: float, z: float, half: float, deep: float, height: float) -> Face:
        """Shadow on the ground of a thing that is `2 * half` wide, `deep` long and `height` high: metres."""
        slant = self.look.shadow_length * height
        base = _floor(x - half, x + half, max(z, NEAR), z + deep)
        base[2:, 0] += slant
        base[1, 0] += slant * (deep > 1.0)
        return Face(base, None, (0, 0, 0))

    def ground(self) -> Iterator[Face]:
        rng, far, (left, right) = self.rng, 3.0 * FAR, self.kerbs.values()
        yield Face(_floor(-far, far, NEAR, far), VEGETATION, self.random_colour("grass"))
        paving = self.random_colour("pavement")
        for side, kerb in self.kerbs.items():
            yield Face(_floor(kerb, kerb + side * self.pavement, NEAR, far), SIDEWALK, paving)
            yield Face(_floor(kerb, kerb + side * 0.25, NEAR, far), SIDEWALK, self.fixed_colour("kerb"))
        yield Face(_floor(left, right, NEAR, far), ROAD, self.random_colour("road"))
        middle, marking = 0.5 * (left + right), self.fixed_colour("marking")
        if rng.random() < 0.75:
            for z in np.arange(NEAR + rng.uniform(0.0, 6.0), 70.0, 6.0):
                yield Face(_floor(middle - 0.08, middle + 0.08, z, z + 3.0), ROAD, marking)
        if rng.random() < 0.3:
            z = rng.uniform(8.0, 22.0)
            for x in np.arange(left + 0.4, right - 0.6, 1.0):
                yield Face(_floor(x, x + 0.5, z, z + 3.0), ROAD, marking)

    def backdrop(self) -> Iterator[Face]:
        """What closes the view at the end of the street: houses or trees, with gaps that show the sky."""
        rng = self.rng
        for x in np.arange(-150.0, 150.0, 12.0):
            if rng.random() < 0.45:
                wall = self.random_colour("facade")
                yield Face(_box(x, FAR, 0.0, rng.uniform(4.0, 13.0), rng.uniform(5.0, 9.0)), BUILDING, wall)
            else:
                yield Face(_disc(x, 1.5, FAR, rng.uniform(4.0, 8.0)), VEGETATION, self.random_colour("leaf"))

    def buildings(self, side: int) -> list[Face]:
        """The houses on one side, with bushes in some of the gaps."""
        rng, line = self.rng, self.kerbs[side] + side * (self.pavement + self.verge)
        light = rng.uniform(0.8, 1.05)
        z = NEAR + rng.uniform(0.0, 6.0)
        row: list[list[Face]] = []
        while z < FAR - 10.0:
            bays = int(rng.integers(2, 5))
            row.append(list(self.building(line, side, z, bays, light)))
            z += 4.0 * bays
            if rng.random() < 0.45:
                gap = rng.uniform(3.0, 9.0)
                x = line + side * rng.uniform(1.0, 3.0)
                row.append(self.crown(x, z + 0.5 * gap, 0.0, rng.uniform(0.9, 1.8)))
                z += gap
        return [face for block in reversed(row) for face in block]

    def building(self, line: float, side: int, z: float, bays: int, light: float) -> Iterator[Face]:
        """A house along the street in bays of four metres: gable wall, roof, then the facade with its windows."""
        storeys = int(self.rng.choice([1, 2, 2, 3, 4]))
        top = 3.0 * storeys + 0.8
        wall, roof = (shaded(self.random_colour(material), light) for material in ("facade", "roof"))
        back, ridge, end = line + side * 9.0, line + side * 4.5, z + 4.0 * bays
        yield Face(_box(0.5 * (line + back), z, 0.0, top, 4.5), BUILDING, shaded(wall, 0.82))
        if self.rng.random() < 0.6:
            rise = top + 2.2
            yield Face(_points([line, ridge, back], [top, rise, top], z), BUILDING, shaded(wall, 0.82))
            slope = _points([line, line, ridge, ridge], [top, top, rise, rise], [z, end, end, z])
            yield Face(slope, BUILDING, roof)
        panes = [shaded(pane, light) for pane in self.look.palette["window"]]
        half = self.rng.uniform(0.6, 1.2)
        for bay in np.arange(bays)[::-1]:
            start = z + 4.0 * bay
            yield Face(_wall(line, start, start + 4.0, 0.0, top), BUILDING, wall)
            for sill in 3.0 * np.arange(storeys) + 1.0:
                pane = panes[self.rng.integers(len(panes))]
                yield Face(_wall(line, start + 2.0 - half, start + 2.0 + half, sill, sill + 1.5), BUILDING, pane)
        yield Face(_wall(line, z, end, top - 0.35, top), BUILDING, roof)

    def crown(self, x: float, z: float, y: float, radius: float) -> list[Face]:
        """A cloud of leaves around the height y: dark discs below and behind, bright ones above and in front."""
        leaf = self.random_colour("leaf")
        offsets = self.rng.uniform(-0.75, 0.75, size=(8, 2)) * radius
        return [
            Face(
                _disc(x + dx, y + radius + dy, z, radius * self.rng.uniform(0.4, 0.75)), VEGETATION, shaded(leaf, light)
            )
            for (dx, dy), light in zip(offsets[offsets[:, 1].argsort()], np.linspace(0.7, 1.2, 8), strict=True)
        ]

    def trees(self) -> Iterator[list[Face]]:
        for _ in range(self.rng.integers(2, 7)):
            side = self.side()
            x = self.kerbs[side] + side * (self.pavement + 0.5 * self.verge - 0.3)
            z = self.distance(x, 70.0)
            stem = self.rng.uniform(1.8, 2.8)
            trunk = Face(_box(x, z, 0.0, stem + 0.8, 0.16), VEGETATION, self.random_colour("trunk"))
            yield [self.shadow(x, z, 0.9, 1.2, 3.0), trunk, *self.crown(x, z, stem, self.rng.uniform(1.1, 1.9))]

    def furniture(self) -> Iterator[list[Face]]:
        """Street lamps and traffic signs along the kerb."""
        for thing in (self.lamp_post, self.traffic_sign):
            for _ in range(self.rng.integers(2, 5)):
                yield thing(self.side())

    def lamp_post(self, side: int) -> list[Face]:
        x = self.kerbs[side] + side * 0.5
        z = self.distance(x, 45.0)
        top = self.rng.uniform(5.0, 7.0)
        metal = self.random_colour("pole")
        arm = x - side * 0.7
        return [
            self.shadow(x, z, 0.12, 0.6, top),
            Face(_box(x, z, 0.0, top, 0.12), POLE, metal),
            Face(_box(arm, z, top - 0.16, top, 0.7), POLE, metal),
            Face(_box(arm - side * 0.5, z, top - 0.34, top - 0.16, 0.3), POLE, self.fixed_colour("lamp")),
        ]

    def traffic_sign(self, side: int) -> list[Face]:
        rng = self.rng
        x = self.kerbs[side] + side * rng.uniform(0.4, 0.8)
        z = self.distance(x, 30.0)
        radius, centre = rng.uniform(0.4, 0.52), rng.uniform(2.3, 3.0)
        corners = int(rng.choice([3, 4, 14]))
        turn = np.linspace(0.0, 2.0 * math.pi, corners, endpoint=False) + (math.pi / 4 if corners == 4 else math.pi / 2)
        plate = np.column_stack([np.cos(turn), np.sin(turn)]) * (1.25 if corners < 14 else 1.0)
        return [
            self.shadow(x, z, 0.08, 0.5, centre),
            Face(_box(x, z, 0.0, centre, 0.07), POLE, self.random_colour("pole")),
            Face(_upright(x, z, plate * radius + [0.0, centre]), SIGN, self.random_colour("sign")),
            Face(_upright(x, z, plate * radius * 0.5 + [0.0, centre]), SIGN, self.fixed_colour("sign mark")),
        ]

    def people(self) -> Iterator[list[Face]]:
        for number in range(self.rng.integers(3, 8)):
            side = self.side()
            x = self.kerbs[side] + side * self.rng.uniform(0.5, self.pavement - 0.4)
            yield self.person(x, self.distance(x, 15.0 if number == 0 else 40.0))

    def person(self, x: float, z: float) -> list[Face]:
        size, step = self.rng.uniform(0.88, 1.08), self.rng.uniform(0.0, 0.32)
        coat, trousers, skin = (self.random_colour(material) for material in ("coat", "trousers", "skin"))
        hem = self.rng.uniform(0.7, 0.95)
        feet = [side * step + side * 0.06 for side in (-1, 1)]
        legs = [[(-0.13, 0.9), (0.13, 0.9), (foot + 0.1, 0.0), (foot - 0.1, 0.0)] for foot in feet]
        arms = [[(s * 0.24, 1.4), (s * 0.38, 0.85), (s * 0.26, 0.82), (s * 0.18, 1.3)] for s in (-1, 1)]
        body = [(-0.24, hem), (0.24, hem), (0.27, 1.36), (0.12, 1.46), (-0.12, 1.46), (-0.27, 1.36)]
        parts: list[tuple[ArrayLike, RGB]] = [
            *((leg, trousers) for leg in legs),
            *((arm, shaded(coat, 0.85)) for arm in arms),
            (body, coat),
            (CIRCLE * [0.13, 0.17] + [0.0, 1.62], skin),
        ]
        drawn = [Face(_upright(x, z, np.array(outline) * size), PERSON, colour) for outline, colour in parts]
        return [self.shadow(x, z, 0.25, 0.5, 1.7), *drawn]

    def traffic(self) -> Iterator[list[Face]]:
        """Parked cars along both kerbs, oncoming cars on the left and, in some scenes, a car ahead."""
        rng, (left, right) = self.rng, self.kerbs.values()
        lanes = [(left + 1.1, 0.5), (right - 1.0, 0.3), (0.5 * left + 0.4, 0.3), (0.2, 0.35)]
        for lane, (x, chance) in enumerate(lanes):
            z = max(8.0, 1.6 * abs(x)) + (rng.uniform(0.0, 10.0) if lane != 3 else rng.uniform(4.0, 20.0))
            while z < 60.0:
                if rng.random() < chance:
                    yield self.car(x + rng.uniform(-0.15, 0.15), z)
                z += rng.uniform(6.5, 14.0) if lane < 2 else rng.uniform(14.0, 30.0)

    def car(self, x: float, z: float) -> list[Face]:
        """A car seen from its end: the flank that faces the camera, then the near end, then its lights and wheels."""
        half, length = 0.88, self.rng.uniform(3.8, 4.6)
        belt, roof = 0.92, self.rng.choice([1.42, 1.5, 1.75])
        paint, glass, tyre = self.random_colour("paint"), self.fixed_colour("glass"), self.fixed_colour("tyre")
        light = self.look.palette["light"][self.rng.integers(2)]
        flank = x - math.copysign(half, x)
        pillars = np.array([0.1, 0.5, 0.65 * length, 0.8 * length])
        pane = _points(flank, [belt, roof - 0.1, roof - 0.1, belt], (pillars * 0.86 + 0.25) + z)
        wheels = [
            _points(flank, 0.33 + 0.33 * CIRCLE[:, 1], 0.33 * CIRCLE[:, 0] + (z + far)) for far in (length - 0.8, 0.8)
        ]
        tyres = [_box(x + side * 0.68, z, 0.0, 0.4, 0.13) for side in (-1, 1)]
        lamps = [_box(x + side * 0.7, z, 0.66, 0.84, 0.14) for side in (-1, 1)]
        parts = [
            (_wall(flank, z, z + length, 0.25, belt), shaded(paint, 0.85)),
            (_points(flank, [belt, roof, roof, belt], pillars + z), shaded(paint, 0.8)),
            (pane, glass),
            *((corners, tyre) for corners in wheels + tyres),
            (_box(x, z, belt, roof, half, 0.82 * half), shaded(paint, 0.95)),
            (_box(x, z, belt + 0.04, roof - 0.1, 0.8 * half, 0.7 * half), glass),
            (_box(x, z, 0.25, belt, half), paint),
            (_box(x, z, 0.42, 0.58, 0.26), self.fixed_colour("sign mark")),
            *((corners, light) for corners in lamps),
        ]
        shadow = self.shadow(x, z - 0.3, half + 0.15, length + 0.5, 0.6)
        return [shadow, *(Face(corners, CAR, colour) for corners, colour in parts)]
