"""Pictures are BGR, labels are raw ids, whatever the file's kind; what is no whole picture is refused."""

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from itertools import product

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from esl_dist.data.images import (
    as_size,
    decode_image,
    decode_label,
    encode_jpg,
    encode_png,
    fitted_size,
    framed_size,
    padded,
    resize_image,
    resize_label,
)
from tests.builders import draw, encoded

RGB = draw(0)[0]
BGR = RGB[:, :, ::-1]
IDS = draw(0)[1]
IDS_16 = (IDS.astype(np.uint16) + 1) * 2000


def palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(np.random.RandomState(1).randint(0, 256, 768).astype(np.uint8).tobytes())
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    return exif


def grey_png(row: bytes, width: int, bits: int) -> bytes:
    """Return a grey PNG of one row with `bits` a pixel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def test_a_colour_picture_is_bgr() -> None:
    np.testing.assert_array_equal(decode_image(encoded(RGB)), BGR)


def test_grey_and_transparent_pictures_have_three_channels() -> None:
    grey = decode_image(encoded(Image.fromarray(RGB[:, :, 0])))
    np.testing.assert_array_equal(grey, np.repeat(RGB[:, :, :1], 3, axis=2))
    alpha = np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(alpha)), BGR)


def test_a_palette_picture_shows_its_colours() -> None:
    image = palette(IDS)
    np.testing.assert_array_equal(decode_image(encoded(image)), np.array(image.convert("RGB"))[:, :, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_orientation_tag_turns_nothing(kind: str) -> None:
    """Labels have no such tag, so a turned picture would no longer lie under its label."""
    content = encoded(RGB, kind, exif=turned())
    np.testing.assert_array_equal(decode_image(content), decode_image(encoded(RGB, kind)))
    assert decode_image(content).shape == (*Image.open(BytesIO(content)).size[::-1], 3)


@pytest.mark.parametrize(
    "image", [Image.fromarray(IDS), palette(IDS), Image.fromarray(IDS_16)], ids=["grey", "palette", "16 bits"]
)
@pytest.mark.parametrize("options", [{}, {"exif": turned()}], ids=["plain", "turned"])
def test_a_label_is_its_raw_ids(image: Image.Image, options: dict) -> None:
    label = decode_label(encoded(image, **options))
    expected = IDS_16 if image.mode.startswith("I") else IDS
    assert label.dtype == expected.dtype
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_label_of_few_bits_is_its_raw_ids(bits: int) -> None:
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 2**bits
    np.testing.assert_array_equal(decode_label(encoded(palette(ids), bits=bits)), ids)


@pytest.mark.parametrize(("bits", "ids"), [(1, [0, 0, 0, 1, 1, 0, 1, 1]), (2, [0, 1, 2, 3]), (4, [1, 11]), (8, [27])])
def test_a_grey_label_of_few_bits_is_not_stretched_to_255(bits: int, ids: list[int]) -> None:
    assert decode_label(grey_png(bytes([0b00011011]), len(ids), bits)).tolist() == [ids]


@pytest.mark.parametrize(
    "image",
    [RGB, np.dstack([IDS, IDS]), IDS.astype(np.int32), IDS.astype(np.float32)],
    ids=["colour", "grey with alpha", "32 bits", "float"],
)
def test_a_label_with_several_channels_or_another_type_is_refused(image: np.ndarray) -> None:
    picture = Image.fromarray(image)
    with pytest.raises(ValueError, match="expected one channel of ids"):
        decode_label(encoded(picture, "TIFF" if picture.mode in ("I", "F") else "PNG"))


@pytest.mark.parametrize("decode", [decode_image, decode_label])
@pytest.mark.parametrize("content", [b"", b"\0", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(decode: Callable[[bytes], np.ndarray], content: bytes) -> None:
    with pytest.raises(ValueError, match=r"picture|empty"):
        decode(content)


@pytest.mark.parametrize(
    ("decode", "content"),
    [
        (decode_image, encoded(RGB)),
        (decode_label, encoded(Image.fromarray(IDS))),
        (decode_label, encoded(palette(IDS))),
        (decode_label, encoded(Image.fromarray(IDS_16))),
    ],
    ids=["colour", "grey", "palette", "16 bits"],
)
def test_damage_anywhere_gives_a_value_error_or_a_picture(
    decode: Callable[[bytes], np.ndarray], content: bytes
) -> None:
    """No other exception may come out: callers turn ValueError into a message that names the file."""
    for place, change in product(range(len(content)), (0x01, 0xFF)):
        broken = bytearray(content)
        broken[place] ^= change
        try:
            decode(bytes(broken))
        except ValueError:
            continue


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("image", [IDS, IDS_16], ids=["8 bits", "16 bits"])
def test_a_label_that_ends_too_early_is_refused(image: np.ndarray, share: float) -> None:
    content = encoded(np.tile(image, (4, 4)))
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_label(content[: int(share * len(content))])


@settings(max_examples=30, deadline=None)
@given(
    st.one_of(
        arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))),
        arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    )
)
def test_a_label_encoded_as_png_comes_back(label: np.ndarray) -> None:
    back = decode_label(encode_png(label))
    assert back.dtype == label.dtype
    np.testing.assert_array_equal(back, label)


def test_a_picture_encoded_as_png_comes_back_and_as_jpg_nearly() -> None:
    np.testing.assert_array_equal(decode_image(encode_png(BGR)), BGR)
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert np.abs(decode_image(encode_jpg(smooth, 95)).astype(int) - smooth).mean() < 3
    assert len(encode_jpg(smooth, 10)) < len(encode_jpg(smooth, 95))


def test_resizing_to_the_same_size_is_no_work() -> None:
    assert resize_image(RGB, (16, 12)) is RGB
    assert resize_label(IDS, (16, 12)) is IDS


def test_a_picture_is_resized_with_antialiased_bicubic() -> None:
    """Lines of one pixel become an even grey; without antialiasing they would stay black or white."""
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::2] = 255
    small = resize_image(lines, (8, 16))
    assert small.shape == (16, 8, 3)
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() < 10
    expected = Image.fromarray(RGB).resize((5, 7), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_image(RGB, (5, 7)), np.array(expected))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([IDS, IDS_16]))
def test_a_resized_label_holds_the_nearest_raw_ids(width: int, height: int, label: np.ndarray) -> None:
    resized = resize_label(label, (width, height))
    rows = (np.arange(height) + 0.5) * label.shape[0] / height
    columns = (np.arange(width) + 0.5) * label.shape[1] / width
    # Where the centre falls between two pixels, both are nearest.
    clear = (rows % 1 != 0)[:, None] & (columns % 1 != 0)
    assert resized.dtype == label.dtype
    assert set(np.unique(resized)) <= set(np.unique(label))
    np.testing.assert_array_equal(resized[clear], label[rows.astype(int)][:, columns.astype(int)][clear])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_the_number_of_bits_does_not_show_in_the_pixels_that_are_nearest(width: int, height: int) -> None:
    one, other = (resize_label(IDS.astype(kind), (width, height)) for kind in (np.uint8, np.uint16))
    np.testing.assert_array_equal(one, other)
    assert one.flags.writeable


def test_sizes_of_the_configuration() -> None:
    assert as_size(None) is None
    assert as_size([8, 6]) == (8, 6)


def channels(kind: type) -> np.ndarray:
    """Return a colour picture (BGR) whose three channels hold other ids."""
    place = np.arange(12 * 16, dtype=kind).reshape(12, 16)
    factor = 300 if kind is np.uint16 else 1
    return np.dstack([place, place[::-1], place[:, ::-1]]).astype(kind) * kind(factor)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(("channel", "place"), [("blue", 0), ("green", 1), ("red", 2)])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_label_in_a_channel_is_that_channel_s_values(kind: type, channel: str, place: int, alpha: bool) -> None:
    colors = channels(kind)
    done, content = cv2.imencode(".png", np.dstack([colors, colors[:, :, :1] + kind(1)]) if alpha else colors)
    assert done
    label = decode_label(content.tobytes(), channel)
    assert label.dtype == kind
    assert label.flags.c_contiguous
    np.testing.assert_array_equal(label, colors[:, :, place])


def test_the_red_channel_is_red_in_a_file_that_another_program_wrote() -> None:
    np.testing.assert_array_equal(decode_label(encoded(RGB), "red"), RGB[:, :, 0])
    np.testing.assert_array_equal(decode_label(encoded(RGB, exif=turned()), "blue"), RGB[:, :, 2])


@pytest.mark.parametrize("image", [IDS, IDS_16], ids=["8 bits", "16 bits"])
def test_a_grey_label_has_no_channel(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a colour picture with ids in green"):
        decode_label(encoded(image), "green")


sides = st.integers(1, 3000)
sizes = st.tuples(sides, sides)


@settings(max_examples=300, deadline=None)
@given(sizes, sizes)
def test_a_fitted_size_touches_its_frame_and_keeps_the_ratio(size: tuple[int, int], frame: tuple[int, int]) -> None:
    (width, height), (fitted_width, fitted_height) = size, fitted_size(size, frame)
    assert 1 <= fitted_width <= frame[0]
    assert 1 <= fitted_height <= frame[1]
    assert fitted_width == frame[0] or fitted_height == frame[1]
    # The side that does not touch is the exact one, cut to whole pixels, though not to none.
    scale = min(Fraction(frame[0], width), Fraction(frame[1], height))
    for fitted, exact in ((fitted_width, width * scale), (fitted_height, height * scale)):
        # In floating point, as published, the cut may fall just below a whole number.
        assert fitted in (max(1, int(exact)), int(exact) - 1 if exact == int(exact) else max(1, int(exact)))


@settings(max_examples=300, deadline=None)
@given(sizes, sizes)
def test_a_fitted_picture_fits_its_frame(size: tuple[int, int], frame: tuple[int, int]) -> None:
    """One that is packed at the size of the training is not resized again when it is read."""
    fitted = fitted_size(size, frame)
    assert fitted_size(fitted, frame) == fitted


def test_a_fitted_size_is_cut_in_floating_point_as_published() -> None:
    assert fitted_size((1288, 1288), (1024, 512)) == (int(1288 * (512 / 1288)), 512) == (511, 512)
    assert fitted_size((90, 50), (40, 24)) == (40, 22)
    assert fitted_size((60, 66), (40, 24)) == (21, 24)


@settings(max_examples=300, deadline=None)
@given(sizes, sizes)
def test_a_framed_size_holds_the_size_and_fitting_into_it_gives_it_back(
    size: tuple[int, int], frame: tuple[int, int]
) -> None:
    framed = framed_size(size, frame)
    assert framed[0] >= size[0]
    assert framed[1] >= size[1]
    assert framed[0] == size[0] or framed[1] == size[1]
    assert fitted_size(size, framed) == size
    # The side that was made longer is that of the frame's ratio, cut to whole pixels.
    scale = max(Fraction(size[0], frame[0]), Fraction(size[1], frame[1]))
    exact = frame[0] * scale, frame[1] * scale
    assert all(exact[side] - 1 < framed[side] <= max(exact[side], size[side]) for side in (0, 1))


@pytest.mark.parametrize(
    ("size", "frame", "fitted"),
    [
        ((4000, 3000), (1024, 512), (682, 512)),
        ((3264, 2448), (1024, 512), (682, 512)),
        ((4032, 2268), (1024, 512), (910, 512)),
        ((1000, 333), (640, 320), (640, 213)),
        ((5000, 1), (10, 10), (10, 1)),
        ((64, 48), (64, 48), (64, 48)),
    ],
)
def test_fractions_of_a_fitted_size_are_cut(
    size: tuple[int, int], frame: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert fitted_size(size, frame) == fitted


@pytest.mark.parametrize("array", [RGB, IDS, IDS_16], ids=["picture", "label", "16 bits"])
def test_padding_is_at_the_right_and_below(array: np.ndarray) -> None:
    result = padded(array, (20, 15), 9)
    assert result.shape == (15, 20, *array.shape[2:])
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result[:12, :16], array)
    assert (result[12:] == 9).all()
    assert (result[:, 16:] == 9).all()
    np.testing.assert_array_equal(padded(array, (16, 12), 9), array)
