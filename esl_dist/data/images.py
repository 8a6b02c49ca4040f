"""Pictures and labels as arrays: decode, resize, encode.

Pictures are BGR as OpenCV reads them and as the published networks expect. Resizing is Pillow's: its bicubic filter is
antialiased, which OpenCV's is not, and the published numbers were made with it.
"""

from io import BytesIO
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Label = NDArray[np.uint8] | NDArray[np.uint16]
"""Raw ids, (height, width)."""

Array = TypeVar("Array", NDArray[np.uint8], NDArray[np.uint16], Label)

Size = tuple[int, int]
"""Width and height in pixels."""

LARGEST_PIXELS = 2**30
"""OpenCV decodes no larger picture; in memory it takes 3 GiB."""

LONGEST_SIDE = 2**20
"""Pixels; OpenCV decodes no longer one."""

LARGEST_JPEG_SIDE = 65_500
"""Pixels; libjpeg writes no more."""

# Pillow's own limit fails at sizes that cameras and satellites reach; the limits here decide instead.
Image.MAX_IMAGE_PIXELS = None

READABLE = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "DIB", "GIF", "PPM", "WEBP", "JPEG2000", "TGA", "AVIF", "SUN")
"""Formats that Pillow may open: it knows others, for some of which (EPS) it runs another program on the file."""

PNG_COMPRESSION = 3
"""zlib level of written PNG files; fixed, so that packing twice gives the same bytes."""


def as_size(size: list[int] | None) -> Size | None:
    """Return a size from the configuration, a list, as (width, height)."""
    return None if size is None else (size[0], size[1])


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Decode a picture to BGR, shape (height, width, 3); an orientation tag is not applied.

    Raises:
        ValueError: the bytes are no picture, or not a whole one.
    """
    return decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).astype(np.uint8, copy=False)


def open_picture(source: Path | BytesIO) -> Image.Image:
    """Open a picture in one of the formats `READABLE`; its pixels are not decoded yet.

    Raises:
        PIL.UnidentifiedImageError: it has no such format; what Pillow's readers raise of damaged files is of any type.
    """
    Image.init()
    return Image.open(source, formats=[kind for kind in READABLE if kind in Image.OPEN])


CHANNELS = {"blue": 0, "green": 1, "red": 2}
"""Channels in the order in which OpenCV decodes them."""


def decode_label(content: bytes, channel: str | None = None) -> Label:
    """Decode a label to raw ids, shape (height, width): a grey PNG's values or a palette PNG's indices.

    Args:
        content: the bytes of a picture file.
        channel: `red`, `green` or `blue`, the channel of a colour picture that holds the ids (8 or 16 bits); None: the
            label has one channel.

    Raises:
        ValueError: the bytes are no picture, or one with another number of channels.
    """
    if channel is not None:
        colors = decode(content, cv2.IMREAD_UNCHANGED)
        if colors.ndim != 3 or colors.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"a label with shape {colors.shape}; expected a colour picture with ids in {channel}")
        return np.ascontiguousarray(colors[:, :, CHANNELS[channel]])  # type: ignore[return-value]
    try:
        with open_picture(BytesIO(content)) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels; expected at most {LARGEST_PIXELS} in all")
            if image.mode == "L" and image.format == "PNG":
                # Pillow stretches grey values of two or four bits over 0 … 255; byte 24 of a PNG holds their number.
                stretch = np.uint8(255 // (2 ** content[24] - 1))
                ids = np.array(image, dtype=np.uint8)
                return ids if stretch == 1 else ids // stretch
            if image.mode in ("P", "L", "1"):
                return np.array(image, dtype=np.uint8)
    except (MemoryError, ValueError):
        raise
    except Exception as error:
        # Pillow's readers raise whatever a damaged file makes them run into.
        raise ValueError(f"not a readable picture ({error})") from error
    label = decode(content, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a label with shape {label.shape} and type {label.dtype}; expected one channel of ids")
    return label


def decode(content: bytes, flags: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode with OpenCV, as its `flags` say.

    Raises:
        ValueError: the bytes are no picture, one of more than `LARGEST_PIXELS`, or one that OpenCV cannot read.
    """
    if not content:
        raise ValueError("an empty file")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        raise ValueError(f"not a readable picture ({error})") from error
    if image is None:
        raise ValueError("not a readable picture")
    return image  # type: ignore[return-value]


def resize_image(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize a picture with Pillow's antialiased bicubic filter; the same array if it has that size."""
    if image.shape[1::-1] == size:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def resize_label(label: Label, size: Size) -> Label:
    """Resize a label by nearest neighbour; the same array if it has that size."""
    if label.shape[::-1] == size:
        return label
    # Pillow has no 16-bit nearest filter for every mode; "I" holds any raw id.
    whole = label if label.dtype == np.uint8 else label.astype(np.int32)
    resized = Image.fromarray(whole).resize(size, Image.Resampling.NEAREST)
    return np.array(resized, label.dtype)  # type: ignore[return-value]


def fitted_size(size: Size, frame: Size) -> Size:
    """Return the largest size of the same aspect ratio that fits into `frame`.

    Fractions are cut as published, in floating point: a square of 1288 fits into a frame of height 512 with width 511.
    """
    (width, height), (frame_width, frame_height) = size, frame
    if width / height > frame_width / frame_height:
        return frame_width, max(1, int(height * (frame_width / width)))
    return max(1, int(width * (frame_height / height))), frame_height


def framed_size(size: Size, frame: Size) -> Size:
    """Return the smallest size of the aspect ratio of `frame` that holds `size`; fractions are cut."""
    (width, height), (frame_width, frame_height) = size, frame
    if width * frame_height > height * frame_width:
        return width, max(height, width * frame_height // frame_width)
    return max(width, height * frame_width // frame_height), height


def same_aspect_ratio(size: Size, other: Size) -> bool:
    """Say whether one size is the other, scaled."""
    return size[0] * other[1] == size[1] * other[0]


def padded(image: Array, size: Size, value: int) -> Array:
    """Put an array of shape (height, width, …) at the top left of one of `size`, filled up with `value`.

    The same array if it has that size.
    """
    width, height = size
    if image.shape[:2] == (height, width):
        return image
    result = np.full((height, width, *image.shape[2:]), value, image.dtype)
    result[: image.shape[0], : image.shape[1]] = image
    return result  # type: ignore[return-value]


def encode_png(image: Label) -> bytes:
    """Encode a BGR picture or a one-channel label as PNG, without loss."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])


def encode_predicted(label: Label) -> bytes:
    """Encode a predicted label as PNG, without loss.

    Run lengths alone make it smaller than the search for repetitions of `encode_png`, and faster; so does the row above
    for every row, in place of a search for the best of five filters.
    """
    run_lengths = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    row_above = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return _encode(".png", label, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION, *run_lengths, *row_above])


def encode_palette(ids: NDArray[np.uint8], colors: NDArray[np.uint8]) -> bytes:
    """Encode ids as PNG, 8 bits each, with a palette that paints them.

    Args:
        ids: (height, width).
        colors: red, green and blue of each id, (256, 3): of fewer, Pillow would write fewer bits.
    """
    image, content = Image.fromarray(ids), BytesIO()
    image.putpalette(colors.tobytes())
    image.save(content, "PNG", compress_level=PNG_COMPRESSION)
    return content.getvalue()


def encode_jpg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode a BGR picture as JPEG of a quality from 1 to 100."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(extension: str, image: NDArray[np.uint8] | NDArray[np.uint16], parameters: list[int]) -> bytes:
    done, content = cv2.imencode(extension, image, parameters)
    if not done:
        raise ValueError(f"OpenCV could not encode an array of shape {image.shape} as {extension}")
    return content.tobytes()
