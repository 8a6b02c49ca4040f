"""The two looks of Toytown: how a street, given as flat faces, appears to the camera of the source or of the target.

A domain gap has to be strong enough to hurt a network that knows only the source, and weak enough to be bridged.
Everything that decides how strong it is stands in the constants below, so that it can be tuned in one place.

The source is a clear noon: clean colours, hardly any shadow, hardly any noise. The target is an overcast autumn dusk
taken by a poorer camera: other paints and leaves, wet asphalt, rough surfaces, long shadows, haze that grows with the
distance, a warm colour cast, less contrast, vignetting, blur and sensor noise. That camera also hangs lower, looks
further down, sees a wider field and rolls; this moves the faces before they become pixels, and one and the same
projected polygon, without antialiasing, is filled in the picture and in the labels, so the two always fit.

All colours are RGB in 0..255 until `photograph` hands the picture over in OpenCV's BGR order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# The strength of the target look. The comment after each value names the value at which that effect vanishes.
PALETTE_SHIFT = 0.75  # 0: the target has the source's paints, leaves and asphalt
COLOUR_CAST = (1.04, 0.99, 0.92)  # gain of red, green and blue; (1, 1, 1)
CAST_JITTER = 0.05  # standard deviation of each gain from scene to scene; 0
CONTRAST = 0.85  # slope around mid grey; 1
GAMMA = 1.1  # exponent, larger is darker; 1
HAZE_DENSITY = 1.0 / 160.0  # extinction per metre; 0
TEXTURE = 0.25  # relative brightness swing of rough surfaces; 0
VIGNETTE = 0.25  # light lost in the corners; 0
BLUR = 0.6  # standard deviation in pixels of a picture 96 pixels high; 0
SENSOR_NOISE = 6.0  # standard deviation in grey levels; 0
SHADOW = 0.45  # light lost in a shadow; 0
SHADOW_LENGTH = 0.9  # metres of shadow for each metre of height; 0

# The target's camera: mean, and spread of a uniform distribution to either side; the comment gives the source's mean.
FOCAL = (1.56, 0.08)  # focal length in picture heights; 1.7
HORIZON = (0.44, 0.03)  # distance from the upper edge in picture heights; 0.46
MOUNT = (1.36, 0.08)  # metres above the road; 1.45
ROLL = (0.0, 2.5)  # degrees; 0, hardly spread

REFERENCE_HEIGHT = 96
SKY = 6
CIRCLE = np.array([(math.cos(a), math.sin(a)) for a in np.linspace(0.0, 2.0 * math.pi, 14, endpoint=False)])
UNLABELLED = 255
BONNET_CHANCE = 0.4

RGB = tuple[int, int, int]
Palette = Mapping[str, tuple[RGB, ...]]
Image = NDArray[np.uint8]
Points = NDArray[np.float64]

SOURCE_PALETTE: Palette = {
    "road": ((122, 124, 130), (132, 132, 136), (114, 117, 124)),
    "marking": ((240, 240, 236),),
    "pavement": ((196, 186, 176), (204, 196, 190), (186, 180, 172)),
    "kerb": ((222, 220, 214),),
    "grass": ((112, 178, 72), (98, 166, 64)),
    "facade": ((226, 206, 164), (170, 196, 214), (206, 122, 100), (232, 224, 212), (160, 184, 158), (222, 178, 190)),
    "roof": ((150, 74, 60), (104, 92, 100), (126, 84, 66)),
    "window": ((66, 96, 136), (84, 118, 160), (54, 78, 112)),
    "pole": ((92, 98, 104), (116, 120, 122), (74, 84, 80)),
    "lamp": ((238, 234, 210),),
    "sign": ((26, 84, 196), (214, 40, 44), (250, 206, 36), (36, 140, 84)),
    "sign mark": ((250, 250, 250),),
    "leaf": ((64, 146, 54), (84, 164, 62), (48, 124, 58)),
    "trunk": ((108, 80, 56),),
    "coat": ((206, 48, 60), (40, 88, 190), (238, 190, 50), (136, 64, 160), (240, 240, 240), (32, 130, 120)),
    "trousers": ((44, 52, 92), (60, 60, 66), (150, 126, 92)),
    "skin": ((232, 188, 158), (176, 122, 88), (112, 76, 56)),
    "paint": ((204, 36, 40), (36, 76, 186), (240, 240, 240), (172, 178, 184), (46, 48, 54), (242, 190, 40)),
    "glass": ((52, 70, 92),),
    "tyre": ((28, 28, 30),),
    "light": ((236, 60, 40), (250, 246, 220)),
    "bonnet": ((48, 52, 60),),
    "zenith": ((104, 162, 234),),
    "horizon": ((206, 228, 248),),
    "cloud": ((236, 240, 246),),
}

TARGET_PALETTE: Palette = {
    "road": ((70, 70, 80), (62, 64, 74), (80, 76, 82)),
    "marking": ((176, 170, 156),),
    "pavement": ((144, 132, 124), (134, 130, 130), (152, 138, 124)),
    "kerb": ((146, 138, 130),),
    "grass": ((128, 118, 62), (142, 122, 70)),
    "facade": ((182, 120, 76), (200, 150, 98), (142, 86, 72), (172, 142, 118), (128, 98, 96), (196, 168, 130)),
    "roof": ((84, 60, 58), (70, 66, 76), (98, 70, 54)),
    "window": ((58, 52, 64), (238, 196, 112), (78, 72, 84)),
    "pole": ((60, 58, 60), (84, 78, 72), (58, 66, 64)),
    "lamp": ((255, 226, 150),),
    "sign": ((44, 76, 150), (176, 48, 46), (204, 164, 52), (50, 106, 84)),
    "sign mark": ((214, 208, 198),),
    "leaf": ((188, 118, 44), (152, 84, 40), (134, 124, 54)),
    "trunk": ((66, 54, 48),),
    "coat": ((120, 40, 52), (46, 58, 96), (150, 118, 60), (80, 56, 92), (176, 170, 164), (52, 84, 82)),
    "trousers": ((36, 38, 56), (46, 44, 48), (96, 82, 66)),
    "skin": ((214, 168, 140), (158, 108, 80), (100, 68, 52)),
    "paint": ((128, 36, 44), (46, 62, 104), (204, 200, 194), (132, 132, 134), (40, 40, 46), (166, 138, 92)),
    "glass": ((88, 92, 104),),
    "tyre": ((22, 22, 24),),
    "light": ((255, 84, 60), (255, 244, 206)),
    "bonnet": ((40, 36, 40),),
    "zenith": ((168, 188, 220),),
    "horizon": ((238, 228, 220),),
    "cloud": ((170, 176, 192),),
}

# Roughness by label value (road, pavement, building, pole, sign, vegetation, sky, person, car): a share of the texture.
ROUGHNESS = (1.0, 0.9, 0.8, 0.2, 0.1, 1.3, 0.12, 0.3, 0.2)


class Optics(NamedTuple):
    """How the cameras of a domain are mounted: means, and spreads of a uniform distribution to either side."""

    focal: tuple[float, float]  # focal length in picture heights
    horizon: tuple[float, float]  # distance from the upper edge in picture heights
    mount: tuple[float, float]  # metres above the road
    roll: tuple[float, float]  # degrees


@dataclass(frozen=True)
class Look:
    """Appearance of one domain; the constants at the top of the module explain the fields and give their units."""

    palette: Palette
    cast: tuple[float, float, float]
    cast_jitter: float
    contrast: float
    gamma: float
    haze_density: float
    texture: float
    vignette: float
    blur: float
    noise: float
    shadow: float
    shadow_length: float
    optics: Optics


def _mixed_palette(first: Palette, second: Palette, share: float) -> Palette:
    """Mix two palettes colour by colour: `share` 0 gives the first, 1 the second."""
    return {
        material: tuple(
            _rounded((1.0 - share) * np.array(one) + share * np.array(other))
            for one, other in zip(colours, second[material], strict=True)
        )
        for material, colours in first.items()
    }


def _rounded(colour: NDArray[np.float64]) -> RGB:
    red, green, blue = (int(value) for value in np.clip(np.rint(colour), 0, 255))
    return red, green, blue


def shaded(colour: RGB, light: float) -> RGB:
    """Return the colour under `light` times the light (1 leaves it as it is), clipped to 0..255."""
    return _rounded(np.array(colour) * light)


LOOKS: Mapping[str, Look] = {
    "source": Look(
        palette=SOURCE_PALETTE,
        cast=(1.0, 1.0, 1.0),
        cast_jitter=0.01,
        contrast=1.0,
        gamma=1.0,
        haze_density=0.0,
        texture=0.04,
        vignette=0.0,
        blur=0.0,
        noise=2.0,
        shadow=0.25,
        shadow_length=0.15,
        optics=Optics(focal=(1.70, 0.06), horizon=(0.46, 0.02), mount=(1.45, 0.05), roll=(0.0, 0.3)),
    ),
    "target": Look(
        palette=_mixed_palette(SOURCE_PALETTE, TARGET_PALETTE, PALETTE_SHIFT),
        cast=COLOUR_CAST,
        cast_jitter=CAST_JITTER,
        contrast=CONTRAST,
        gamma=GAMMA,
        haze_density=HAZE_DENSITY,
        texture=TEXTURE,
        vignette=VIGNETTE,
        blur=BLUR,
        noise=SENSOR_NOISE,
        shadow=SHADOW,
        shadow_length=SHADOW_LENGTH,
        optics=Optics(FOCAL, HORIZON, MOUNT, ROLL),
    ),
}


class Face(NamedTuple):
    """A flat polygon: corners in metres (n x 3), its label value (None for a shadow) and its colour in RGB."""

    corners: Points
    label: int | None
    colour: RGB


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along the street; lengths in pixels but `mount` in metres and `roll` in radians."""

    width: int
    height: int
    focal: float
    centre: float
    horizon: float
    mount: float
    roll: float

    def project(self, points: Points) -> NDArray[np.int32]:
        """Map points in metres (n x 3, in front of the camera) to the nearest pixels (n x 2, column and row)."""
        x, y, z = points.T
        across = self.centre + self.focal * x / z - 0.5 * self.width
        down = self.horizon + self.focal * (self.mount - y) / z - 0.5 * self.height
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        columns = cos * across - sin * down + 0.5 * self.width
        rows = sin * across + cos * down + 0.5 * self.height
        pixels: NDArray[np.int32] = np.rint(np.stack([columns, rows], axis=1)).astype(np.int32)
        return pixels

    def ground_depth(self) -> Image:
        """Distance of the ground in whole metres, height x width, 255 for that and more and above the horizon."""
        across = np.arange(self.width)[None, :] - 0.5 * self.width
        down = np.arange(self.height)[:, None] - 0.5 * self.height
        level = math.cos(self.roll) * down - math.sin(self.roll) * across + 0.5 * self.height
        return np.minimum(self.focal * self.mount / np.maximum(level - self.horizon, 1e-3), 255.0).astype(np.uint8)


def _mount_camera(optics: Optics, width: int, height: int, rng: np.random.Generator) -> Camera:
    focal, horizon, mount, roll = (mean + spread * rng.uniform(-1.0, 1.0) for mean, spread in optics)
    centre = width * (0.5 + 0.07 * rng.uniform(-1.0, 1.0))
    return Camera(width, height, focal * height, centre, horizon * height, mount, math.radians(roll))


def photograph(
    faces: list[Face], look: Look, width: int, height: int, layout: np.random.Generator, film: np.random.Generator
) -> tuple[Image, Image]:
    """Take a picture of a street and label it.

    Args:
        faces: the street, in the order in which to paint it.
        look: the domain's appearance and camera.
        width: of the picture in pixels.
        height: of the picture in pixels.
        layout: source of how the camera is mounted.
        film: source of the sky, the texture of the surfaces, the colour cast and the noise.

    Returns:
        The picture, BGR, height x width x 3, and its label values, height x width.
    """
    camera = _mount_camera(look.optics, width, height, layout)
    picture = _sky(look, width, height, film)
    labels = np.full((height, width), SKY, np.uint8)
    depth = camera.ground_depth()
    _paint(faces, camera, look, picture, labels, depth)
    if layout.random() < BONNET_CHANCE:
        _paint_bonnet(picture, labels, look.palette["bonnet"][0], layout)
    return _develop(picture, labels, depth, look, film), labels


def _paint(faces: list[Face], camera: Camera, look: Look, picture: Image, labels: Image, depth: Image) -> None:
    """Fill the faces in the order given into picture (RGB), labels and depth, in place."""
    pixels = camera.project(np.concatenate([face.corners for face in faces]))
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


def _paint_bonnet(picture: Image, labels: Image, colour: RGB, rng: np.random.Generator) -> None:
    height, width = labels.shape
    radius = np.array([0.55 * width, rng.uniform(0.03, 0.08) * height])
    outline = np.rint(CIRCLE * radius + [0.5 * width, height]).astype(np.int32)
    cv2.fillPoly(picture, [outline], colour)
    cv2.fillPoly(labels, [outline], UNLABELLED)


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
    light = picture.astype(np.float32) * _surface(labels, look, rng)[:, :, None]
    light = _hazed(light, labels, depth, look)
    light *= _vignette(labels.shape, look)[:, :, None]
    light *= (np.array(look.cast) + look.cast_jitter * rng.standard_normal(3)).astype(np.float32)
    light = _blurred(_tone_curve(look)[_to_bytes(light)], look).astype(np.float32)
    light += np.float32(look.noise) * rng.standard_normal(light.shape, dtype=np.float32)
    return np.ascontiguousarray(_to_bytes(light)[:, :, ::-1])


def _surface(labels: Image, look: Look, rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness factor of the surfaces: noise of three frequencies, as rough as each class is."""
    height, width = labels.shape
    noise = np.zeros((height, width), np.float32)
    for rows, columns, weight in ((6, 10, 0.35), (24, 40, 0.35), (64, 96, 0.5)):
        noise += np.float32(weight) * _value_noise(rng, height, width, rows, columns)
    roughness = np.zeros(256, np.float32)
    roughness[: len(ROUGHNESS)] = ROUGHNESS
    return np.float32(1.0) + np.float32(look.texture) * roughness[labels] * noise


def _hazed(light: NDArray[np.float32], labels: Image, depth: Image, look: Look) -> NDArray[np.float32]:
    haze = (1.0 - np.exp(-look.haze_density * np.arange(256))).astype(np.float32)
    share = np.where((labels == SKY) | (labels == UNLABELLED), np.float32(0.0), haze[depth])[:, :, None]
    return light + (np.array(look.palette["horizon"][0], np.float32) - light) * share


def _vignette(shape: tuple[int, ...], look: Look) -> NDArray[np.float32]:
    down, across = (np.linspace(-1.0, 1.0, size, dtype=np.float32) ** 2 for size in shape)
    return np.float32(1.0) - np.float32(0.5 * look.vignette) * (down[:, None] + across[None, :])


def _tone_curve(look: Look) -> Image:
    level = np.arange(256) / 255.0
    return _to_bytes(255.0 * np.clip(0.5 + look.contrast * (level**look.gamma - 0.5), 0.0, 1.0))


def _blurred(picture: Image, look: Look) -> Image:
    sigma = look.blur * picture.shape[0] / REFERENCE_HEIGHT
    # Blurring bytes rather than floats is exact arithmetic, hence the same on every processor.
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8) if sigma > 0.0 else picture


def _to_bytes(values: NDArray[np.float32] | NDArray[np.float64]) -> Image:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
