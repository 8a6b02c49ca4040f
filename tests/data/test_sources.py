"""A source file's pixels are what viewers and both decoders see, or there is a message; ids come back as they are."""

import struct
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps, PngImagePlugin

from esl_dist.data.sources import Reading, read_label, read_picture, turned
from tests.builders import draw, encoded

RGB, IDS = draw(0)
IDS_16 = IDS.astype(np.uint16) * 1000
PLAIN = Reading(label_channel=None, colors=None, exif_orientation=None, largest_pixels=10**6)
COLORS = {(0, 0, 0): 0, (128, 64, 128): 7, (70, 70, 70): 300, (255, 255, 255): 65535}


def reading(**changes: object) -> Reading:
    return Reading(**{**vars(PLAIN), **changes})


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    return image


def png_16(array: np.ndarray) -> bytes:
    """Encode 16 bits a channel in colour, which Pillow cannot write."""
    done, content = cv2.imencode(".png", array.astype(np.uint16) * 200)
    assert done
    return content.tobytes()


def seen(content: bytes, **changes: object) -> np.ndarray:
    """Return a picture as RGB."""
    return read_picture(content, reading(**changes)).pixels[:, :, ::-1]


def bmp(bits: int, compression: int, tables: bytes, row: bytes, width: int) -> bytes:
    """Return a BMP of one row."""
    start = 54 + len(tables)
    colors = len(tables) // 4 if bits <= 8 else 0
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, bits, compression, len(row), 0, 0, colors, 0)
    return b"BM" + struct.pack("<IHHI", start + len(row), 0, 0, start) + header + tables + row


def bmp_of_16_steps_of_grey() -> bytes:
    return bmp(4, 0, b"".join(bytes([grey] * 3 + [0]) for grey in range(16)), b"\x01\x23\0\0", 4)


def bmp_of_565_bits() -> bytes:
    return bmp(16, 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F), struct.pack("<HH", 1 << 11, 2 << 11), 2)


def tiff_of_12_bits() -> bytes:
    """Return a grey TIFF of two values, 1 and 2."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    pixels = bytes([0x00, 0x10, 0x02, 0])
    return b"II*\0" + struct.pack("<I", 12) + pixels + struct.pack("<H", len(tags)) + directory + bytes(4)


def several_frames(kind: str) -> bytes:
    image = Image.fromarray(RGB)
    return encoded(image, kind, save_all=True, append_images=[image.rotate(180)])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pictures_of_8_bits_show_their_colours(mode: str, kind: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(seen(encoded(image, kind)), np.array(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_file_is_kept_by_its_content_if_it_is_png_or_jpeg(kind: str) -> None:
    options = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if kind == "MPO" else {}
    found = read_picture(encoded(RGB, kind, **options), PLAIN)
    assert found.extension == {"PNG": "png", "JPEG": "jpg", "MPO": "jpg"}.get(kind)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(IDS_16), "16 bits a channel"),
        (encoded(IDS_16, "TIFF"), "16 bits a channel"),
        (png_16(RGB), "16 bits a channel"),
        (encoded(IDS.astype(np.float32), "TIFF"), "more than 8 bits a channel"),
        (encoded(IDS.astype(np.int32), "TIFF"), "more than 8 bits a channel"),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "its colours are CMYK; convert it to RGB"),
        (encoded(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), "its colours are YCbCr; convert it to RGB"),
        (encoded(Image.fromarray(RGB).convert("LAB"), "TIFF"), "its colours are LAB; convert it to RGB"),
        (several_frames("PNG"), "2 frames or pages"),
        (several_frames("GIF"), "2 frames or pages"),
        (several_frames("WEBP"), "2 frames or pages"),
        (several_frames("TIFF"), "2 frames or pages"),
        (encoded(np.dstack([RGB, IDS])), "of its pixels are transparent"),
        (encoded(palette(IDS), transparency=7), "of its pixels are transparent"),
        (encoded(Image.fromarray(IDS), transparency=7), "of its pixels are transparent"),
        (encoded(RGB, "TGA"), "this TGA cannot be read by OpenCV; save it as png"),
        (encoded(RGB, "PCX"), "not a picture in a format that can be read"),
        (encoded(RGB, "EPS"), "not a picture in a format that can be read"),
        (b"P5 4 2 100\n" + bytes(range(8)), "see different pixels in this PPM"),
        (b"", "an empty file"),
        (b"no picture", "not a picture in a format that can be read"),
        (encoded(RGB)[:200], "not a whole picture"),
        (encoded(RGB, "JPEG")[:300], "not a whole picture"),
    ],
)
def test_what_a_decoder_would_settle_in_silence_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_picture(content, PLAIN)


def test_the_limit_is_that_of_the_setting_not_pillow_s(monkeypatch: pytest.MonkeyPatch) -> None:
    large = encoded(np.zeros((13_000, 14_000), np.uint8), compress_level=1)
    with pytest.raises(ValueError, match="14000×13000 pixels, more than 1 megapixels; raise largest_megapixels"):
        read_picture(large, PLAIN)
    assert Image.open(BytesIO(large)).size == (14_000, 13_000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_what_viewers_do(orientation: int) -> None:
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(turned(RGB, orientation), np.array(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("JPEG", {}), ("WEBP", {"lossless": True})])
def test_a_tag_of_orientation_is_applied_or_ignored_as_asked(orientation: int, kind: str, options: dict) -> None:
    """Pillow and OpenCV turn a TIFF by themselves, the others not."""
    stored = seen(encoded(RGB, kind, **options))
    content = encoded(RGB, kind, exif=tagged(orientation), **options)
    np.testing.assert_array_equal(seen(content, exif_orientation="ignore"), stored)
    np.testing.assert_array_equal(seen(content, exif_orientation="apply"), turned(stored, orientation))
    assert read_picture(content, reading(exif_orientation="apply")).extension is None
    with pytest.raises(ValueError, match=f"carries EXIF orientation {orientation}, .*apply.*ignore"):
        read_picture(content, PLAIN)


def test_a_side_that_opencv_does_not_decode_is_named() -> None:
    content = encoded(Image.new("L", (1_000_001, 1)))
    with pytest.raises(ValueError, match="1000001×1 pixels; expected at most 1000000 a side"):
        read_picture(content, reading(largest_pixels=10**7))


@pytest.mark.parametrize("orientation", [0, 1, 9, 700])
def test_a_tag_that_turns_nothing_is_passed_over(orientation: int) -> None:
    content = encoded(RGB, "JPEG", exif=tagged(orientation))
    assert read_picture(content, PLAIN).extension == "jpg"


def test_an_orientation_in_xmp_counts_too() -> None:
    information = PngImagePlugin.PngInfo()
    information.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="3"/>')
    with pytest.raises(ValueError, match="carries EXIF orientation 3"):
        read_picture(encoded(RGB, pnginfo=information), PLAIN)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("ids", [IDS, IDS_16], ids=["8 bits", "16 bits"])
def test_a_label_has_an_orientation_of_its_own(kind: str, orientation: int, ids: np.ndarray) -> None:
    content = encoded(ids, kind, exif=tagged(orientation))
    np.testing.assert_array_equal(read_label(content, reading(exif_orientation="ignore")), ids)
    np.testing.assert_array_equal(read_label(content, reading(exif_orientation="apply")), turned(ids, orientation))
    with pytest.raises(ValueError, match=f"carries EXIF orientation {orientation}"):
        read_label(content, PLAIN)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_labels_of_one_channel_are_their_ids(kind: str) -> None:
    images = [Image.fromarray(IDS), palette(IDS)]
    if kind in ("PNG", "TIFF"):
        images += [Image.fromarray(IDS_16), Image.fromarray(IDS > 7)]
    if kind == "PNG":
        images.append(Image.merge("LA", [Image.fromarray(IDS), Image.new("L", (16, 12), 255)]))
    for image in images:
        ids = IDS_16 if image.mode == "I;16" else IDS > 7 if image.mode == "1" else IDS
        np.testing.assert_array_equal(read_label(encoded(image, kind), PLAIN), ids)


def test_a_pgm_holds_ids_of_8_or_16_bits() -> None:
    assert read_label(b"P5 2 2 255\n" + bytes([0, 7, 11, 255]), PLAIN).tolist() == [[0, 7], [11, 255]]
    assert read_label(b"P5 2 1 65535\n" + bytes([1, 0, 0, 7]), PLAIN).tolist() == [[256, 7]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(IDS, "JPEG", quality=100), "a label in JPEG, whose compression may change ids"),
        (encoded(RGB, "WEBP", lossless=True), "a label in WEBP, whose compression may change ids"),
        (encoded(RGB, "TIFF", compression="jpeg"), "a label in TIFF with jpeg, whose compression may change ids"),
        (encoded(Image.fromarray(IDS > 7), "TIFF", tiffinfo={262: 0}), "a TIFF whose values are inverted"),
        (b"P5 4 2 100\n" + bytes(range(8)), "its highest value is neither 255 nor 65535"),
        (b"P2 2 1\n# stretched\n3\n0 1\n", "its highest value is neither 255 nor 65535"),
        (b"P2 2 1 300\n0 1\n", "its highest value is neither 255 nor 65535"),
        (b"P4 8 1\n\xff", "its highest value is neither 255 nor 65535"),
        (bmp_of_16_steps_of_grey(), "a BMP of 4 bits a pixel, whose ids are stretched"),
        (tiff_of_12_bits(), "a TIFF whose values are inverted or have other than 8 or 16 bits"),
        (encoded(RGB), r"in colour \(RGB\).*`label_colors: true`.*`label_channel: red`"),
        (encoded(np.dstack([RGB, IDS])), r"in colour \(RGBA\).*`label_colors: true`"),
        (encoded(Image.merge("LA", [Image.fromarray(IDS)] * 2)), "of its pixels are transparent"),
        (encoded(IDS.astype(np.int32), "TIFF"), r"type (int|float)32; expected one channel of ids"),
        (encoded(IDS.astype(np.float32), "TIFF"), r"type (int|float)32; expected one channel of ids"),
        (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "a label whose colours are CMYK"),
        (several_frames("GIF"), "2 frames or pages"),
        (b"", "an empty file"),
        (encoded(IDS)[:100], "not a whole picture"),
    ],
)
def test_a_label_whose_ids_are_not_clear_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label(content, PLAIN)


@pytest.mark.parametrize("image", [Image.fromarray(IDS), Image.fromarray(IDS_16)], ids=["8 bits", "16 bits"])
def test_a_grey_label_has_no_red_channel(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="a label with one channel, but `label_channel: red` in the description"):
        read_label(encoded(image), reading(label_channel="red"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"P3 1 1 3\n1 2 3\n", "its highest value is neither"), (bmp_of_565_bits(), "a BMP of 16 bits a pixel")],
)
def test_a_channel_whose_ids_are_stretched_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label(content, reading(label_channel="red"))


def test_a_ppm_of_8_bits_has_ids_in_its_channels() -> None:
    assert read_label(b"P3 1 1 255\n1 2 3\n", reading(label_channel="red")).tolist() == [[1]]


@pytest.mark.parametrize("alpha", [255, 254])
def test_ids_in_a_channel_may_have_an_opaque_alpha_beside_them(alpha: int) -> None:
    content = encoded(np.dstack([RGB, np.full_like(IDS, alpha)]))
    if alpha == 255:
        np.testing.assert_array_equal(read_label(content, reading(label_channel="green")), RGB[:, :, 1])
    else:
        with pytest.raises(ValueError, match="192 of its pixels are transparent"):
            read_label(content, reading(label_channel="green"))


@settings(max_examples=30, deadline=None)
@given(
    choice=arrays(np.uint8, st.tuples(st.integers(1, 600), st.integers(1, 4)), elements=st.integers(0, 3)),
    alpha=st.booleans(),
    kind=st.sampled_from(["PNG", "BMP"]),
)
def test_colours_become_ids(choice: np.ndarray, alpha: bool, kind: str) -> None:
    colors = np.array(list(COLORS), np.uint8)[choice]
    painted = np.dstack([colors, np.full(choice.shape, 255, np.uint8)]) if alpha else colors
    label = read_label(encoded(painted, kind), reading(colors=COLORS))
    np.testing.assert_array_equal(label, np.array(list(COLORS.values()))[choice])


def test_a_palette_of_the_classes_colours_is_painted_in_them() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([128, 64, 128, 70, 70, 70])
    assert read_label(encoded(image), reading(colors=COLORS)).tolist() == [[7, 300]]


def test_colours_of_no_class_are_counted_the_most_frequent_first() -> None:
    painted = np.zeros((4, 10, 3), np.uint8)
    painted[0, :7] = (1, 2, 3)
    painted[1:, 0, 2] = [9, 9, 8]
    with pytest.raises(
        ValueError, match=r"no class: \[1, 2, 3\] \(7 pixels\), \[0, 0, 9\] \(2 .*\[0, 0, 8\] \(1 pixels\);"
    ):
        read_label(encoded(painted), reading(colors=COLORS))
    many = np.arange(90, dtype=np.uint8).reshape(3, 10, 3) + 100
    with pytest.raises(ValueError, match=r"no class: (\[.*?\] \(1 pixels\),? ?){5} and 25 more;"):
        read_label(encoded(many), reading(colors=COLORS))
    with pytest.raises(ValueError, match="16 bits a channel"):
        read_label(png_16(RGB), reading(colors=COLORS))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damage_anywhere_gives_a_message_or_a_picture(kind: str) -> None:
    """No other exception may come out: it is the message that names the file."""
    for read, array in ((read_picture, RGB[:6, :6]), (read_label, IDS[:6, :6])):
        content = encoded(array, kind)
        for place in range(len(content)):
            broken = bytearray(content)
            broken[place] ^= 0xFF
            try:
                read(bytes(broken), PLAIN)
            except ValueError:
                continue
