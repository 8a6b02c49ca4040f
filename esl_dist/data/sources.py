"""A source file's pixels, or a message: what a decoder would settle in silence is refused here, or settled as asked.

Decoders cut 16 bits to the upper 8, drop transparency, take the first of several frames, turn a picture by its tag or
not, and lossy formats change ids. The check before packing and the packing itself both read files with what is here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from esl_dist.data.images import LARGEST_PIXELS, LONGEST_SIDE, Label, Size, decode, decode_label, open_picture
from esl_dist.data.labels import Color

Pixels = TypeVar("Pixels", NDArray[np.uint8], Label)

KEPT = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg"}
"""Formats whose files are packed as they are: Pillow's name → the member's extension. An MPO is a JPEG with further
pictures behind it (a preview, a depth map), which all readers of JPEG pass over."""
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24", "tiff_thunderscan")
"""Pillow's names of the compressions of TIFF that may change ids."""
WHOLE_BYTES = {8, 16, 32}
"""Bits of a TIFF's values that decoders leave as they are; 32 are refused by their type."""
PNM_HEADER = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+(\d+)){3}\s")
"""Kind, then width, height and highest value, which is the group."""
COLOR_MODES = ("1", "L", "P", "RGB", "LA", "RGBA")
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's names of one channel; it calls 16 bits `I` in some formats and versions."""
UPRIGHT = 1
INVERSE = {6: 8, 8: 6}
"""The orientations that another one undoes; all others undo themselves."""
SHOWN_COLORS = 5
LONGEST_SIDES = {"PNG": 1_000_000}
"""Formats whose own reader in OpenCV has another limit."""
BLUE_GREEN_RED = np.array([1, 2**8, 2**16], np.int32)
"""What makes one number of a colour."""


@dataclass(frozen=True)
class Reading:
    """How source files are read.

    Attributes:
        label_channel: the channel of colour labels that holds the raw id; None: labels of one channel.
        colors: (red, green, blue) → raw id, for labels painted in the classes' colours; None: labels hold ids.
        exif_orientation: `apply` or `ignore`, for files whose EXIF tag asks to turn them; None: they are refused.
        largest_pixels: most pixels of a picture or a label.
    """

    label_channel: str | None = None
    colors: Mapping[Color, int] | None = None
    exif_orientation: str | None = None
    largest_pixels: int = LARGEST_PIXELS


class Picture(NamedTuple):
    """A picture's pixels, BGR (height, width, 3), and the extension under which its file can be packed as it is."""

    pixels: NDArray[np.uint8]
    extension: str | None


def read_picture(content: bytes, reading: Reading) -> Picture:
    """Decode a picture's file.

    Raises:
        ValueError: it is no whole picture of 8 bits a channel in grey or colour, or leaves open what it shows.
    """
    image, orientation = _loaded(content, reading)
    pixels = turned(_colors(content, image), orientation)
    return Picture(pixels, KEPT.get(image.format or "") if orientation == UPRIGHT else None)


def read_label(content: bytes, reading: Reading) -> Label:
    """Decode a label's file to raw ids, shape (height, width).

    Raises:
        ValueError: it is no whole picture, one whose format may change ids, or has other channels than described.
    """
    image, orientation = _loaded(content, reading)
    _refuse_changed_ids(image)
    if reading.colors is not None:
        return turned(_ids_of_colors(_colors(content, image), reading.colors), orientation)
    _refuse_stretched_ids(content, image)
    return turned(_ids(content, image, reading.label_channel), orientation)


def size_in_header(path: Path) -> Size:
    """Return a picture's width and height without decoding it; (0, 0) where that cannot be told."""
    try:
        with open_picture(path) as image:
            return image.size
    except Exception:
        # Whatever is wrong with it, the check will find and name it.
        return (0, 0)


def _loaded(content: bytes, reading: Reading) -> tuple[Image.Image, int]:
    """Return the whole picture, and the orientation from 1 to 8 by which its decoded pixels are to be turned."""
    if not content:
        raise ValueError("an empty file (0 bytes)")
    tag, frames = UPRIGHT, 1
    try:
        image = open_picture(BytesIO(content))
        is_too_large = image.width * image.height > reading.largest_pixels
        if not is_too_large:
            # Before it is loaded, for then Pillow turns a TIFF and drops its tag.
            tag = _orientation(image)
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            # OpenCV fills a file that ends too early with grey; Pillow notices.
            image.load()
    except UnidentifiedImageError:
        raise ValueError("not a picture in a format that can be read; expected png or jpg") from None
    except MemoryError:
        raise
    except Exception as error:
        # Its readers raise whatever a damaged file makes them run into: OSError, SyntaxError, struct.error, KeyError, …
        raise ValueError(f"not a whole picture ({error})") from error
    if is_too_large:
        raise ValueError(
            f"{image.width}×{image.height} pixels, more than {reading.largest_pixels / 1e6:g} megapixels; raise "
            "largest_megapixels if this picture is no mistake"
        )
    if frames > 1:
        raise ValueError(f"{frames} frames or pages ({image.format}); expected a single picture: save the one you mean")
    if tag == UPRIGHT:
        return image, UPRIGHT
    if reading.exif_orientation is None:
        raise ValueError(
            f"carries EXIF orientation {tag}, by which viewers turn or mirror it; write in the description "
            "`exif_orientation: apply` where labels fit what viewers show, `exif_orientation: ignore` where they fit "
            "the stored pixels"
        )
    # Pillow and OpenCV both turn a TIFF by themselves, and nothing else.
    is_turned, is_to_be = image.format == "TIFF", reading.exif_orientation == "apply"
    if is_turned == is_to_be:
        return image, UPRIGHT
    return image, INVERSE.get(tag, tag) if is_turned else tag


def _orientation(image: Image.Image) -> int:
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except MemoryError:
        raise
    except Exception:
        # As every viewer does with damaged tags.
        return UPRIGHT
    return tag if tag in range(UPRIGHT, 9) else UPRIGHT


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror an array of shape (height, width, …) as the EXIF orientation from 1 to 8 says."""
    if orientation == UPRIGHT:
        return pixels
    transposed = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(transposed[::rows, ::columns])  # type: ignore[return-value]


def _colors(content: bytes, image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels as BGR if Pillow and OpenCV see the same ones, opaque and with 8 bits a channel."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(_too_deep("16" if image.mode.startswith("I;16") else "more than 8"))
    if image.mode not in COLOR_MODES:
        raise ValueError(f"its colours are {image.mode}; convert it to RGB of 8 bits a channel")
    try:
        pixels = decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    except ValueError:
        longest = LONGEST_SIDES.get(image.format or "", LONGEST_SIDE)
        if max(image.size) > longest:
            raise ValueError(f"{image.width}×{image.height} pixels; expected at most {longest} a side") from None
        raise ValueError(f"this {image.format} cannot be read by OpenCV; save it as png") from None
    if pixels.dtype != np.uint8:
        raise ValueError(_too_deep(f"{pixels.dtype.itemsize * 8}"))
    _refuse_transparency(image)
    if not _same_pixels(image, pixels):
        raise ValueError(f"Pillow and OpenCV see different pixels in this {image.format}; save it as png of 8 bits")
    return pixels  # type: ignore[return-value]


def _too_deep(bits: str) -> str:
    return f"{bits} bits a channel; convert it to 8 bits: only you know which values are black and white"


def _same_pixels(image: Image.Image, pixels: NDArray[np.generic]) -> bool:
    if pixels.shape != (image.height, image.width, 3):
        return False
    if image.format not in LOSSLESS:
        # Two decoders of a lossy format may round differently.
        return True
    rgb = image.convert("RGB")
    return all(np.array_equal(np.asarray(rgb.getchannel(place)), pixels[:, :, 2 - place]) for place in range(3))


def _refuse_transparency(image: Image.Image) -> None:
    if not image.has_transparency_data:
        return
    seen_through = sum(image.convert("RGBA").getchannel("A").histogram()[:255])
    if seen_through:
        raise ValueError(
            f"{seen_through} of its pixels are transparent, and their colour is not defined; save it without an alpha "
            "channel"
        )


def _refuse_changed_ids(image: Image.Image) -> None:
    """Refuse formats that do not keep every id, and kinds of TIFF whose values Pillow changes when it reads them."""
    compression = image.info.get("compression", "raw")
    if image.format not in LOSSLESS or (image.format == "TIFF" and compression in LOSSY_TIFF):
        raise ValueError(
            f"a label in {image.format if image.format != 'TIFF' else f'TIFF with {compression}'}, whose compression "
            "may change ids; expected a format without loss, such as png"
        )
    if image.format == "TIFF" and image.mode in GREY_MODES:
        tags = image.tag_v2  # type: ignore[attr-defined]
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        bits = {8} if image.mode == "1" else set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
        if inverted or not bits <= WHOLE_BYTES:
            raise ValueError("a TIFF whose values are inverted or have other than 8 or 16 bits; save the label as png")


def _refuse_stretched_ids(content: bytes, image: Image.Image) -> None:
    """Refuse kinds of PGM, PPM and BMP whose ids both decoders may stretch alike."""
    if image.format == "PPM":
        # A PBM says no highest value, nor may an unusual header.
        header = PNM_HEADER.match(content)
        if header is None or int(header[1]) not in (255, 65535):
            raise ValueError("its highest value is neither 255 nor 65535, so ids are stretched; save the label as png")
    if image.format == "BMP" and image.mode in ("L", "RGB", "RGBA"):
        has_short_header = int.from_bytes(content[14:18], "little") == 12
        bits = int.from_bytes(content[24:26] if has_short_header else content[28:30], "little")
        if bits not in (8, 24, 32):
            raise ValueError(f"a BMP of {bits} bits a pixel, whose ids are stretched; save the label as png")


def _ids(content: bytes, image: Image.Image, channel: str | None) -> Label:
    mode = image.mode
    if mode not in (*GREY_MODES, "P", "RGB", "RGBA"):
        raise ValueError(f"a label whose colours are {mode}; expected one channel of ids, or RGB")
    if channel is None and mode in ("RGB", "RGBA"):
        raise ValueError(
            f"a label in colour ({mode}); expected one channel of ids. Say in the description where they are: "
            "`label_colors: true` where it is painted in the classes' colours, `label_channel: red` where the ids are "
            "in a channel"
        )
    if channel is not None and mode in GREY_MODES:
        raise ValueError(
            f"a label with one channel, but `label_channel: {channel}` in the description; expected a colour picture"
        )
    if channel is not None or mode == "LA":
        _refuse_transparency(image)
    if mode == "LA":
        label = decode(content, cv2.IMREAD_UNCHANGED)
        return np.ascontiguousarray(label[:, :, 0]) if label.ndim == 3 else label  # type: ignore[return-value]
    return decode_label(content, channel)


def _ids_of_colors(pixels: NDArray[np.uint8], ids: Mapping[Color, int]) -> Label:
    """Turn colours, BGR (height, width, 3), to raw ids."""
    known = np.array(sorted((red << 16 | green << 8 | blue, one) for (red, green, blue), one in ids.items()))
    label: Label = np.empty(pixels.shape[:2], np.uint8 if known[:, 1].max() < 2**8 else np.uint16)
    strange = []
    # Row by row, for it takes ten times the memory of the pixels it works on.
    for row, ids_of_row in zip(pixels, label, strict=True):
        codes = row.astype(np.int32) @ BLUE_GREEN_RED
        places = np.searchsorted(known[:, 0], codes).clip(max=len(known) - 1)
        strange.append(codes[known[places, 0] != codes])
        ids_of_row[:] = known[places, 1]
    colors, counts = np.unique(np.concatenate(strange), return_counts=True)
    if len(colors):
        most = np.argsort(-counts, kind="stable")[:SHOWN_COLORS]
        shown = ", ".join(
            f"[{colors[i] >> 16}, {colors[i] >> 8 & 255}, {colors[i] & 255}] ({counts[i]} pixels)" for i in most
        )
        more = f" and {len(colors) - len(most)} more" if len(colors) > len(most) else ""
        raise ValueError(
            f"colours of no class: {shown}{more}; `label_colors: true` expects the classes' colours exactly"
        )
    return label
