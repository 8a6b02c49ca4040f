"""The two looks of Toytown: how a street, given as flat faces, appears to the camera of the source or of the target.

A domain gap has to be strong enough to hurt a network that knows only the source, and weak enough to be bridged.
Everything that decides how strong it is stands in `PALETTES` and `LOOKS`, so that it can be tuned in one place.

The source is a clear noon: clean colours, hardly any shadow, hardly any noise. The target is an overcast autumn dusk
taken by a poorer camera: other paints and leaves, wet asphalt, rough surfaces, long shadows, haze that grows with the
distance, a warm colour cast, less contrast, vignetting, blur and sensor noise. That camera also hangs lower, looks
further down, sees a wider field and rolls; this moves the faces before they become pixels, and one and the same
projected polygon, without antialiasing, is filled in the picture and in the labels, so the two always fit.

All colours are RGB in 0..255 until `photograph` hands the picture over in OpenCV's BGR order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

REFERENCE_HEIGHT = 96
SKY = 6
UNLABELLED = 255
BONNET_CHANCE = 0.4
CIRCLE = np.array([(math.cos(a), math.sin(a)) for a in np.linspace(0.0, 2.0 * math.pi, 14, endpoint=False)])

# By label value (road, pavement, building, pole, sign, vegetation, sky, person, car): a share of the texture.
ROUGHNESS = np.zeros(256, np.float32)
ROUGHNESS[:9] = 1.0, 0.9, 0.8, 0.2, 0.1, 1.3, 0.12, 0.3, 0.2

RGB = tuple[int, ...]
Image = NDArray[np.uint8]
Points = NDArray[np.float64]
Pixels = NDArray[np.int32]

# The paints of each material, one of which a thing has: those of the source, and those of the target.
PALETTES = {
    "road": ("7a7c82 848488 72757c", "53545c 50515a 58565c"),
    "marking": ("f0f0ec", "c0bcb0"),
    "pavement": ("c4bab0 ccc4be bab4ac", "9d9289 989291 a09488"),
    "kerb": ("dedcd6", "a59e97"),
    "grass": ("70b248 62a640", "7c8540 838544"),
    "facade": ("e2cea4 aac4d6 ce7a64 e8e0d4 a0b89e deb2be", "c18e62 c0a27f 9e5f4f bba28e 887870 caaa91"),
    "roof": ("964a3c 685c64 7e5442", "64403a 4e4852 694a39"),
    "window": ("426088 5476a0 364e70", "3c3f52 c8b07c 484a5b"),
    "pole": ("5c6268 74787a 4a5450", "444447 5c5854 3e4644"),
    "lamp": ("eeead2", "fbe4a5"),
    "sign": ("1a54c4 d6282c face24 248c54", "284ea2 ba2e2e d8ae30 2e7254"),
    "sign mark": ("fafafa", "dfdad3"),
    "leaf": ("409236 54a43e 307c3a", "9d7d2e 87682e 707c37"),
    "trunk": ("6c5038", "4c3c32"),
    "coat": ("ce303c 2858be eebe32 8840a0 f0f0f0 208278", "8e2a36 2c4278 ac883a 5e3a6d c0bcb7 2f605c"),
    "trousers": ("2c345c 3c3c42 967e5c", "262a41 323034 6e5d48"),
    "skin": ("e8bc9e b07a58 704c38", "daad90 a27052 674635"),
    "paint": ("cc2428 244cba f0f0f0 acb2b8 2e3036 f2be28", "93242b 2c427c d5d2ce 8e9092 2a2a30 b9974f"),
    "glass": ("34465c", "4f5665"),
    "tyre": ("1c1c1e", "18181a"),
    "light": ("ec3c28 faf6dc", "fa4e37 fef4d2"),
    "bonnet": ("30343c", "2a282d"),
    "zenith": ("68a2ea", "98b6e0"),
    "horizon": ("cee4f8", "e6e4e3"),
    "cloud": ("ecf0f6", "bac0ce"),
}


@dataclass(frozen=True)
class Look:
    """Appearance of one domain: its light and its camera. The defaults are the source's.

    The camera's are a mean, and the spread of a uniform distribution to either side.
    """

    palette: dict[str, tuple[RGB, ...]]
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # gain of red, green and blue
    cast_jitter: float = 0.01  # standard deviation of each gain from scene to scene
    contrast: float = 1.0  # slope around mid grey
    gamma: float = 1.0  # exponent, larger is darker
    haze_density: float = 0.0  # extinction per metre
    texture: float = 0.04  # relative brightness swing of rough surfaces
    vignette: float = 0.0  # light lost in the corners
    blur: float = 0.0  # standard deviation in pixels of a picture 96 pixels high
    noise: float = 2.0  # standard deviation of the sensor's, in grey levels
    shadow: float = 0.25  # light lost in a shadow
    shadow_length: float = 0.15  # metres of shadow for each metre of height
    focal: tuple[float, float] = (1.70, 0.06)  # focal length in picture heights
    horizon: tuple[float, float] = (0.46, 0.02)  # distance from the upper edge in picture heights
    mount: tuple[float, float] = (1.45, 0.05)  # metres above the road
    roll: tuple[float, float] = (0.0, 0.3)  # degrees


def _palette(domain: int) -> dict[str, tuple[RGB, ...]]:
    return {name: tuple(tuple(bytes.fromhex(c)) for c in both[domain].split()) for name, both in PALETTES.items()}


LOOKS = {
    "source": Look(_palette(0)),
    "target": Look(
        _palette(1),
        cast=(1.04, 0.99, 0.92),
        cast_jitter=0.05,
        contrast=0.85,
        gamma=1.1,
        haze_density=1.0 / 160.0,
        texture=0.25,
        vignette=0.25,
        blur=0.6,
        noise=6.0,
        shadow=0.45,
        shadow_length=0.9,
        focal=(1.56, 0.08),
        horizon=(0.44, 0.03),
        mount=(1.36, 0.08),
        roll=(0.0, 2.5),
    ),
}


def shaded(colour: RGB, light: float) -> RGB:
    """Return the colour under `light` times the light (1 leaves it as it is), clipped to 0..255."""
    return tuple(_to_bytes(np.array(colour) * light).tolist())


class Face(NamedTuple):
    """A flat polygon: corners in metres (n x 3), its label value (None for a shadow) and its colour in RGB."""

    corners: Points
    label: int | None
    colour: RGB


def photograph(
    faces: list[Face], look: Look, width: int, height: int, layout: np.random.Generator, film: np.random.Generator
) -> tuple[Image, Image]:
    """Take a picture of a street and label it.

    Args:
        faces: the street, in the order in which to paint it.
        look: the domain's appearance and camera.
        width, height: of the picture in pixels.
        layout: source of how the camera is mounted.
        film: source of the sky, the texture of the surfaces, the colour cast and the noise.

    Returns:
        The picture, BGR, height x width x 3, and its label values, height x width.
    """
    project, depth = _mounted_camera(look, width, height, layout)
    picture = _sky(look, width, height, film)
    labels = np.full((height, width), SKY, np.uint8)
    pixels = project(np.concatenate([face.corners for face in faces]))
    ends = np.cumsum([len(face.corners) for face in faces])
    for face, polygon in zip(faces, np.split(pixels, ends[:-1]), strict=True):
        if face.label is None:
            shadow = cv2.fillPoly(np.zeros_like(labels), [polygon], 1).astype(bool)
            picture[shadow] = (picture[shadow] * (1.0 - look.shadow)).astype(np.uint8)
            continue
        cv2.fillPoly(picture, [polygon], face.colour)
        cv2.fillPoly(labels, [polygon], face.label)
        if face.corners[:, 1].max() > 0.0:  # the ground has its depth already, finer than one value for each face
            cv2.fillPoly(depth, [polygon], int(min(face.corners[:, 2].mean(), 255.0)))
    if layout.random() < BONNET_CHANCE:
        radius = np.array([0.55 * width, layout.uniform(0.03, 0.08) * height])
        outline = _to_pixels(CIRCLE * radius + [0.5 * width, height])
        cv2.fillPoly(picture, [outline], look.palette["bonnet"][0])
        cv2.fillPoly(labels, [outline], UNLABELLED)
    return _develop(picture, labels, depth, look, film), labels


def _mounted_camera(
    look: Look, width: int, height: int, rng: np.random.Generator
) -> tuple[Callable[[Points], Pixels], Image]:
    """Mount a pinhole camera that looks along the street.

    Returns:
        The map from points in metres (n x 3, in front of the camera) to the nearest pixels (n x 2, column and row), and
        the distance of the ground in whole metres, height x width, 255 for that and more and above the horizon.
    """
    optics = (look.focal, look.horizon, look.mount, look.roll)
    focal, horizon, mount, roll = (mean + spread * rng.uniform(-1.0, 1.0) for mean, spread in optics)
    centre = width * (0.5 + 0.07 * rng.uniform(-1.0, 1.0))
    focal, horizon = focal * height, horizon * height
    cos, sin = math.cos(math.radians(roll)), math.sin(math.radians(roll))

    def project(points: Points) -> Pixels:
        x, y, z = points.T
        across = centre + focal * x / z - 0.5 * width
        down = horizon + focal * (mount - y) / z - 0.5 * height
        columns, rows = cos * across - sin * down + 0.5 * width, sin * across + cos * down + 0.5 * height
        return _to_pixels(np.stack([columns, rows], axis=1))

    across, down = np.arange(width)[None, :] - 0.5 * width, np.arange(height)[:, None] - 0.5 * height
    below_horizon = cos * down - sin * across + 0.5 * height - horizon
    return project, np.minimum(focal * mount / np.maximum(below_horizon, 1e-3), 255.0).astype(np.uint8)


def _value_noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> NDArray[np.float32]:
    """Return smooth noise in -1..1, height x width, interpolated between `rows` x `columns` random values."""
    grid = rng.integers(0, 256, size=(rows, columns), dtype=np.uint8)
    # The exact variant of linear interpolation promises the same bytes on every processor.
    fine = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return fine.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _sky(look: Look, width: int, height: int, rng: np.random.Generator) -> Image:
    """Return a sky, RGB height x width x 3: brighter towards the middle row, where the horizon lies, with clouds."""
    zenith, horizon, cloud = (np.array(look.palette[name][0], np.float32) for name in ("zenith", "horizon", "cloud"))
    descent = np.minimum(np.arange(height, dtype=np.float32) / np.float32(0.5 * height), 1.0)[:, None, None]
    clear = zenith + (horizon - zenith) * descent
    density = _value_noise(rng, height, width, 7, 5) + np.float32(0.5) * _value_noise(rng, height, width, 16, 12)
    cover = np.clip(density - np.float32(rng.uniform(-0.8, 0.6)), 0.0, 0.8)[:, :, None]
    return _to_bytes(clear + (cloud - clear) * cover)


def _develop(picture: Image, labels: Image, depth: Image, look: Look, rng: np.random.Generator) -> Image:
    """Turn flatly painted colours (RGB) into what the camera makes of them (BGR); `depth` is in whole metres."""
    height, width = labels.shape
    noise = np.zeros((height, width), np.float32)
    for rows, columns, weight in ((6, 10, 0.35), (24, 40, 0.35), (64, 96, 0.5)):
        noise += np.float32(weight) * _value_noise(rng, height, width, rows, columns)
    texture = np.float32(1.0) + np.float32(look.texture) * ROUGHNESS[labels] * noise
    light = picture.astype(np.float32) * texture[:, :, None]

    haze = (1.0 - np.exp(-look.haze_density * np.arange(256))).astype(np.float32)
    share = np.where((labels == SKY) | (labels == UNLABELLED), np.float32(0.0), haze[depth])[:, :, None]
    light += (np.array(look.palette["horizon"][0], np.float32) - light) * share

    down, across = (np.linspace(-1.0, 1.0, size, dtype=np.float32) ** 2 for size in (height, width))
    light *= (np.float32(1.0) - np.float32(0.5 * look.vignette) * (down[:, None] + across))[:, :, None]
    light *= (np.array(look.cast) + look.cast_jitter * rng.standard_normal(3)).astype(np.float32)

    tone = _to_bytes(255.0 * np.clip(0.5 + look.contrast * ((np.arange(256) / 255.0) ** look.gamma - 0.5), 0.0, 1.0))
    exposed = tone[_to_bytes(light)]
    if (sigma := look.blur * height / REFERENCE_HEIGHT) > 0.0:
        # Blurring bytes rather than floats is exact arithmetic, hence the same on every processor.
        exposed = np.asarray(cv2.GaussianBlur(exposed, (0, 0), sigma), np.uint8)
    sensed = exposed + np.float32(look.noise) * rng.standard_normal(light.shape, dtype=np.float32)
    return np.ascontiguousarray(_to_bytes(sensed)[:, :, ::-1])


def _to_bytes(values: NDArray[np.float32] | NDArray[np.float64]) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _to_pixels(points: Points) -> Pixels:
    return np.rint(points).astype(np.int32)
