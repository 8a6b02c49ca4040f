"""Pictures and labels as arrays: decode, resize, encode.

Pictures are BGR as OpenCV reads them and as the published networks expect. Resizing is Pillow's: its bicubic filter is
antialiased, which OpenCV's is not, and the published numbers were made with it.
"""

from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Label = NDArray[np.uint8] | NDArray[np.uint16]
"""Raw ids, (height, width)."""

Size = tuple[int, int]
"""Width and height in pixels."""

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
    return _decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).astype(np.uint8, copy=False)


def decode_label(content: bytes) -> Label:
    """Decode a label to raw ids, shape (height, width): a grey PNG's values or a palette PNG's indices.

    Raises:
        ValueError: the bytes are no picture, or one with several channels.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            if image.mode == "L" and image.format == "PNG":
                # Pillow stretches grey values of two or four bits over 0 … 255; byte 24 of a PNG holds their number.
                return np.array(image, dtype=np.uint8) // np.uint8(255 // (2 ** content[24] - 1))
            if image.mode in ("P", "L", "1"):
                return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"no picture that can be read ({error})") from error
    label = _decode(content, cv2.IMREAD_UNCHANGED)
    if label.ndim != 2 or label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a label with shape {label.shape} and type {label.dtype}; expected one channel of ids")
    return label


def _decode(content: bytes, flags: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if not content:
        raise ValueError("an empty file")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"no picture that can be read ({error})") from error
    if image is None:
        raise ValueError("no picture that can be read")
    return image  # type: ignore[return-value]


def resize_image(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize a picture with Pillow's antialiased bicubic filter; the same array if it has that size."""
    if image.shape[1::-1] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def resize_label(label: Label, size: Size) -> Label:
    """Resize a label by nearest neighbour; the same array if it has that size."""
    if label.shape[::-1] == size:
        return label
    # Pillow has no 16-bit nearest filter for every mode; "I" holds any raw id.
    resized = Image.fromarray(label.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(resized).astype(label.dtype)  # type: ignore[return-value]


def encode_png(image: Label) -> bytes:
    """Encode a BGR picture or a one-channel label as PNG, without loss."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])


def encode_jpg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encode a BGR picture as JPEG of a quality from 1 to 100."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(extension: str, image: NDArray[np.uint8] | NDArray[np.uint16], parameters: list[int]) -> bytes:
    done, content = cv2.imencode(extension, image, parameters)
    if not done:
        raise ValueError(f"OpenCV could not encode an array of shape {image.shape} as {extension}")
    return content.tobytes()
