"""Pictures and masks of every format, mode and depth, and of 8 to 20,000 pixels."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from conftest import write_picture
from PIL import Image

from dataset import View
from images import bit_depth, read
from images.bit_depth import PRINTED
from images.read import SUFFIXES, as_image, highest_value, read_mask, read_picture, read_reduced, reduction_factors
from runtime.errors import UserError

GREY = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))  # 32 wide, 24 high
COLOUR = np.stack([GREY, GREY[:, ::-1], np.full_like(GREY, 90)], axis=2)
LUMA = np.asarray(Image.fromarray(COLOUR).convert("L"))
DEEP_GREY, DEEP_COLOUR = GREY.astype(np.uint16) * 257, COLOUR.astype(np.uint16) * 257


@pytest.fixture(autouse=True)
def forget_printed_lines():
    PRINTED.clear()


def read_pixels(path, channels=3):
    return np.asarray(read_picture(path, channels))


def tiff(values, **keywords):
    return lambda path: tifffile.imwrite(path, values, **keywords)


def saved(mode, **keywords):
    return lambda path: Image.fromarray(COLOUR).convert(mode).save(path, **keywords)


def deep_png(values, colour_type):
    """Return a writer of 16-bit PNG, as Pillow writes it in grey only."""

    def write(path):
        def chunk(kind, content):
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )

    return write


def twelve_bit_tiff(path):
    """Write a TIFF with two values packed in three bytes."""
    left, right = (GREY.astype(int).ravel() * 4095 // 255).reshape(-1, 2).T
    packed = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], axis=1).astype(np.uint8).tobytes()
    tags = [(256, 32), (257, 24), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 24), (279, len(packed))]
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + b"\0" * 4
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory)


def pages(path):
    tifffile.imwrite(path, np.stack([GREY, 255 - GREY]))


def frames(path):
    Image.fromarray(GREY).save(
        path, save_all=True, append_images=[Image.fromarray(255 - GREY)], duration=100, lossless=True
    )


FORMATS = {
    "gif": ("gif", saved("L"), LUMA, 0),
    "tga": ("tga", saved("RGB"), COLOUR, 0),
    "ppm": ("ppm", saved("RGB"), COLOUR, 0),
    "pgm": ("pgm", saved("L"), LUMA, 0),
    "16-bit pgm": (
        "pgm",
        lambda path: path.write_bytes(b"P5 32 24 65535\n" + DEEP_GREY.astype(">u2").tobytes()),
        GREY,
        0,
    ),
    "pfm": (
        "pfm",
        lambda path: path.write_bytes(b"Pf\n32 24\n-1.0\n" + (GREY[::-1] / 255).astype("<f4").tobytes()),
        GREY,
        0,
    ),
    "jp2": ("jp2", saved("RGB"), COLOUR, 0),
    "cmyk tiff": ("tif", saved("CMYK"), COLOUR, 0),
    "cmyk jpeg": ("jpg", saved("CMYK", quality=100, subsampling=0), COLOUR, 8),
    "grey and alpha": ("png", saved("LA"), LUMA, 0),
    "one bit": ("png", lambda path: Image.fromarray(GREY > 127).save(path), np.where(GREY > 127, 255, 0), 0),
    "16-bit colour png": ("png", deep_png(DEEP_COLOUR, 2), COLOUR, 0),
    "16-bit colour tiff": ("tif", tiff(DEEP_COLOUR), COLOUR, 0),
    "16-bit colour tiff by planes": (
        "tif",
        tiff(np.moveaxis(DEEP_COLOUR, 2, 0), photometric="rgb", planarconfig="separate"),
        COLOUR,
        0,
    ),
    "16-bit grey from white to black": ("tif", tiff(65535 - DEEP_GREY, photometric="miniswhite"), GREY, 0),
    "12-bit tiff": ("tif", twelve_bit_tiff, GREY, 1),
    "int16 tiff": ("tif", tiff((DEEP_GREY // 2).astype(np.int16)), GREY / 2, 1),
    "uint32 colour tiff": ("tif", tiff(DEEP_COLOUR.astype(np.uint32), photometric="rgb"), COLOUR, 0),
    **{f"float{bits} grey, 0…1": ("tif", tiff((GREY / 255).astype(f"f{bits // 8}")), GREY, 0) for bits in (16, 32, 64)},
    "float32 colour, 0…1": ("tif", tiff((COLOUR / 255).astype(np.float32), photometric="rgb"), COLOUR, 0),
    "float32 grey, 0…255": ("tif", tiff(GREY.astype(np.float32)), GREY, 0),
    "float64 colour, 0…65535": ("tif", tiff(DEEP_COLOUR.astype(np.float64), photometric="rgb"), COLOUR, 0),
    "a dark float": ("tif", tiff((GREY / 2550).astype(np.float32)), GREY / 10, 0.51),
    "the first page": ("tif", pages, GREY, 0),
    "the first frame of a gif": ("gif", frames, GREY, 0),
    "the first frame of a webp": ("webp", frames, GREY, 1),
    "the first frame of a png": ("png", frames, GREY, 0),
}


@pytest.mark.parametrize(("suffix", "write", "expected", "tolerance"), FORMATS.values(), ids=FORMATS)
def test_every_format_is_read(tmp_path, suffix, write, expected, tolerance):
    path = tmp_path / f"x.{suffix}"
    write(path)
    assert path.suffix in SUFFIXES
    read = np.asarray(read_picture(path)).astype(float)
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    assert read.shape == expected.shape and np.abs(read - expected).max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "TIFF", "webp"])
def test_lossless_formats_in_any_case_give_the_same_pixels(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR).save(
        path, format={"tif": "TIFF", "tiff": "TIFF"}.get(suffix.lower(), suffix.upper()), lossless=True
    )
    np.testing.assert_array_equal(read_pixels(path), COLOUR)


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg"])
def test_jpeg_is_read_in_any_case(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR).save(path, format="JPEG", quality=98)
    assert np.abs(read_pixels(path).astype(int) - COLOUR).mean() < 3


def test_grey_becomes_three_equal_channels_and_colour_becomes_grey(tmp_path):
    write_picture(tmp_path / "grey.png", GREY)
    np.testing.assert_array_equal(read_pixels(tmp_path / "grey.png"), np.repeat(GREY[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_pixels(tmp_path / "grey.png", channels=1), GREY)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = (GREY.astype(np.uint16)) * 257
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        np.testing.assert_array_equal(read_pixels(tmp_path / name, channels=1), GREY)


def test_palette_and_opaque_alpha_do_not_change_colours(tmp_path):
    Image.fromarray(COLOUR).quantize(8).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        read_pixels(tmp_path / "palette.png"), np.asarray(Image.fromarray(COLOUR).quantize(8).convert("RGB"))
    )
    Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "rgba.png"), COLOUR)


def test_transparent_pixels_are_white(tmp_path):
    Image.fromarray(np.dstack([COLOUR, np.zeros_like(GREY)])).save(tmp_path / "clear.png")
    assert (read_pixels(tmp_path / "clear.png") == 255).all()


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_pixels(tmp_path / "turned.png"), np.rot90(COLOUR, -1))


def test_each_choice_is_printed_once(tmp_path, capsys):
    for name in ("a", "b"):
        pages(tmp_path / f"{name}.tif")
        frames(tmp_path / f"{name}.gif")
        tifffile.imwrite(tmp_path / f"{name} float.tif", GREY / 255)
    for path in sorted(tmp_path.iterdir()):
        read_picture(path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and {line.split(":")[0] for line in lines} == {
        ".tif files of several pages",
        ".gif files of several frames",
        "floating-point pictures",
    }


@pytest.mark.parametrize(
    "values",
    [GREY / 255, (GREY / 255).astype(np.float16), GREY.astype(np.float32), DEEP_GREY, COLOUR / 255, DEEP_COLOUR],
)
def test_arrays_are_read_like_files_with_the_same_values(values, tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack")
    np.testing.assert_array_equal(as_image(values), read_picture(tmp_path / "x.tif"))


REFUSED = {
    "negative": (tiff(GREY / 255 - 0.5), "its values go from -0.5 to 0.5, neither 0…1 nor"),
    "beyond 16 bits": (tiff(GREY * 1e6), "neither 0…1 nor 0…255 nor 0…65535; scale them"),
    "not a number": (tiff(np.where(GREY > 9, np.nan, 1)), "values that are not finite"),
    "large whole numbers": (
        tiff(GREY.astype(np.int32) * 1000),
        "go from 0 to 255000, beyond 16 bits; save it with 8 or 16 bits",
    ),
    "large colour": (
        tiff(COLOUR.astype(np.int32) * 1000, photometric="rgb"),
        "beyond 16 bits; save it with 8 or 16 bits",
    ),
    "five channels": (
        tiff(np.zeros((24, 32, 5), np.uint8), photometric="minisblack", planarconfig="contig"),
        "pixels have 5 values; save it as",
    ),
    "no tiff": (lambda path: path.write_text("hello"), "its content is not a picture; replace or remove it"),
    "empty": (lambda path: path.touch(), "it is empty; replace or remove it"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_an_unusable_file_is_refused_with_its_name_and_the_reason(tmp_path, write, message):
    write(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif can't be read: ") as caught:
        read_picture(tmp_path / "x.tif")
    assert message in str(caught.value) and str(caught.value).count("x.tif") == 1


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 3)])
def test_masks_are_binary_whatever_their_values(tmp_path, values):
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 16:] = values[1]
    write_picture(tmp_path / "m.png", mask)
    actual = read_mask(tmp_path / "m.png", (32, 24), tmp_path / "x.png", (16, 16))
    np.testing.assert_array_equal(actual, np.tile(np.arange(16) >= 8, (16, 1)))


def test_masks_are_binary_after_the_resize_not_before(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    write_picture(tmp_path / "m.png", mask)
    resized = np.asarray(Image.fromarray(mask).resize((16, 16), Image.Resampling.BILINEAR))
    binary = Image.fromarray((mask > 127).astype(np.uint8) * 255)
    binary_first = np.asarray(binary.resize((16, 16), Image.Resampling.BILINEAR)) > 127
    actual = read_mask(tmp_path / "m.png", (32, 32), tmp_path / "x.png", (16, 16))
    np.testing.assert_array_equal(actual, resized > 127)
    assert (actual != binary_first).any()


def test_masks_of_any_mode_are_read(tmp_path):
    truth = np.tile(np.arange(32) >= 16, (24, 1))
    palette = Image.new("P", (32, 24))
    palette.putdata(truth.astype(np.uint8).ravel().tolist())
    palette.putpalette([0, 0, 0, 40, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(truth.astype(np.uint16)).save(tmp_path / "deep labels.png")
    Image.fromarray(truth.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
    Image.fromarray(truth).save(tmp_path / "bits.png")
    Image.fromarray(np.repeat(truth[..., None] * np.uint8(255), 4, axis=2)).save(tmp_path / "clear.png")
    for name in ("palette", "deep labels", "deep", "bits", "clear"):
        actual = read_mask(tmp_path / f"{name}.png", (32, 24), tmp_path / "x.png", (16, 16))
        np.testing.assert_array_equal(actual, np.tile(np.arange(16) >= 8, (16, 1)), err_msg=name)


def test_floating_point_masks_are_read(tmp_path):
    truth = np.tile(np.arange(32) >= 16, (24, 1))
    for kind in (np.float32, np.float64):
        tifffile.imwrite(tmp_path / "m.tif", truth.astype(kind))
        np.testing.assert_array_equal(
            read_mask(tmp_path / "m.tif", (32, 24), tmp_path, (16, 16)), np.tile(np.arange(16) >= 8, (16, 1))
        )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_decompression_bombs_are_refused(tmp_path, suffix, monkeypatch):
    """A file of 2 KB that claims 30,000 × 30,000 pixels."""
    path = tmp_path / f"x.{suffix}"
    if suffix == "png":
        deep_png(np.zeros((2, 2), np.uint16), 0)(path)
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 30_000, 30_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    else:
        monkeypatch.setattr(read, "MOST_PIXELS", 700)
        tifffile.imwrite(path, GREY / 255)
    with pytest.raises(
        ValueError, match=r"its (30,000×30,000|32×24) pixels are more than the [0-9,]+ that are read; make it smaller"
    ):
        read_picture(path)


@pytest.mark.filterwarnings("error")
def test_pillow_keeps_its_own_limit_and_does_not_warn(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), COLOUR)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("size", [(8, 8), (20_000, 8), (8, 20_000), (9, 7)])
def test_small_and_long_pictures_are_read(tmp_path, size):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "x.png")
    pixels, own = View(16).read(tmp_path / "x.png")
    assert own == size and pixels.shape == (3, 16, 16) and pixels[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "F", "CMYK", "P"])
def test_reducing_in_strips_equals_reducing_the_whole_picture(tmp_path, mode, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(read, "LARGE", 10_000)
    monkeypatch.setattr(bit_depth, "STRIP", 50)
    path = tmp_path / "x.tif"
    if mode in ("I;16", "F"):
        tifffile.imwrite(path, rng.integers(0, 65535, (203, 317)).astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        colours = Image.fromarray(rng.integers(0, 255, (203, 317, 4), np.uint8))
        (colours.convert("RGB").convert(mode) if mode != "RGBA" else colours).save(path)
    strips, own = View(8).read(path)
    assert own == (317, 203)
    np.testing.assert_array_equal(strips, View(8).pixels(read_picture(path)))
    monkeypatch.setattr(read, "LARGE", 10**9)
    exact, _ = View(8).read(path)
    assert (strips.int() - exact.int()).abs().max() <= 6  # 317 × 203 to 8 × 8: reduced by 9 × 6 first


def test_ordinary_pictures_are_not_reduced(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "x.png")
    picture, own = read_reduced(tmp_path / "x.png", 3, lambda width, height: (4, 4))
    assert picture.size == own == (32, 24)
    assert reduction_factors((13_000, 13_000), (32, 32)) == (1, 1) and reduction_factors(
        (20_000, 20_000), (256, 256)
    ) == (19, 19)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (GREY[..., None], GREY),
        (GREY[None], GREY),
        (COLOUR, COLOUR),
        (np.moveaxis(COLOUR, 2, 0), COLOUR),
        (torch.from_numpy(GREY)[None], GREY),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        (torch.from_numpy(COLOUR).permute(2, 0, 1) / 255, COLOUR),
        (torch.from_numpy(COLOUR / 255).requires_grad_(), COLOUR),
        (torch.from_numpy(COLOUR).permute(2, 0, 1).bfloat16() / 255, COLOUR),
        (torch.from_numpy(DEEP_COLOUR), COLOUR),
        (np.dstack([COLOUR, np.full_like(GREY, 255)]), COLOUR),
    ],
)
def test_arrays_and_tensors_of_any_layout_are_read(form, expected):
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    assert np.abs(np.asarray(as_image(form)).astype(int) - expected).max() <= ("bfloat16" in str(form.dtype))


def test_colours_of_arrays_may_come_blue_first():
    for form in (COLOUR[..., ::-1], np.moveaxis(COLOUR, 2, 0)[::-1], torch.from_numpy(COLOUR).flip(2)):
        np.testing.assert_array_equal(as_image(form, order="bgr"), COLOUR)
    clear = np.dstack([COLOUR[..., ::-1], np.full_like(GREY, 255)])
    np.testing.assert_array_equal(as_image(clear, order="bgr"), COLOUR)
    np.testing.assert_array_equal(as_image(GREY, order="bgr", channels=1), GREY)


@pytest.mark.parametrize(
    ("form", "order", "message"),
    [
        (
            np.zeros((2, 3, 24, 32), np.uint8),
            "rgb",
            r"an array \(2, 3, 24, 32\) of uint8 is not a picture; give \(H, W\)",
        ),
        (np.zeros((24, 32, 2), np.uint8), "rgb", "is not a picture"),
        (np.zeros((3, 32, 3), np.uint8), "rgb", "may have its channels first or last"),
        (torch.zeros(24, 32, dtype=torch.int64), "rgb", r"a tensor \(24, 32\) of int64 is not a picture"),
        (np.zeros((0, 32), np.uint8), "rgb", "is not a picture"),
        (torch.randn(3, 24, 32), "rgb", "its values go from .* neither 0…1 nor 0…255"),
        (COLOUR, "gbr", "channels is 'gbr'; it should be rgb or bgr"),
        (Image.fromarray(COLOUR), "bgr", "channels='bgr' is for arrays and tensors; leave it out for Image"),
        ([1, 2], "rgb", "list is not a picture; give a path, a PIL image, an array or a tensor"),
        (None, "rgb", "NoneType is not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(form, order, message):
    with pytest.raises(UserError, match=message) as caught:
        as_image(form, order=order)
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_turned_says_so_once(capsys):
    as_image(Image.fromarray(COLOUR))
    assert not capsys.readouterr().err
    turned = Image.fromarray(COLOUR)
    turned.getexif()[274] = 6  # shown after a quarter turn clockwise
    for _ in range(2):
        np.testing.assert_array_equal(as_image(turned), np.rot90(COLOUR, -1))
    assert capsys.readouterr().err.count("boxes fit the turned picture") == 1


TWELVE_GREY, TWELVE_COLOUR = ((values // 16).astype(np.uint16) for values in (DEEP_GREY, DEEP_COLOUR))
TWELVE_BITS = {
    "grey png": ("png", lambda path: Image.fromarray(TWELVE_GREY).save(path), GREY),
    "grey tiff": ("tif", tiff(TWELVE_GREY), GREY),
    "grey pgm": ("pgm", lambda path: path.write_bytes(b"P5 32 24 65535\n" + TWELVE_GREY.astype(">u2").tobytes()), GREY),
    "colour png": ("png", deep_png(TWELVE_COLOUR, 2), COLOUR),
    "colour tiff": ("tif", tiff(TWELVE_COLOUR, photometric="rgb"), COLOUR),
    "colour tiff by planes": (
        "tif",
        tiff(np.moveaxis(TWELVE_COLOUR, 2, 0), photometric="rgb", planarconfig="separate"),
        COLOUR,
    ),
}


@pytest.mark.parametrize(("suffix", "write", "expected"), TWELVE_BITS.values(), ids=TWELVE_BITS)
def test_twelve_bits_in_a_file_of_sixteen_keep_their_grey_levels(tmp_path, suffix, write, expected):
    path = tmp_path / f"x.{suffix}"
    write(path)
    assert highest_value(path) == 4095
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    assert np.abs(np.asarray(read_picture(path, bits=12)).astype(int) - expected).max() <= 1
    assert np.asarray(read_picture(path)).max() <= 16
    reduced, _ = read_reduced(path, 3, lambda width, height: (4, 4), 12)
    np.testing.assert_array_equal(reduced, read_picture(path, bits=12))


def test_the_bits_of_arrays_are_those_of_files():
    for values, expected in ((TWELVE_GREY, np.repeat(GREY[..., None], 3, axis=2)), (TWELVE_COLOUR, COLOUR)):
        assert np.abs(np.asarray(as_image(values, bits=12)).astype(int) - expected).max() <= 1


def test_a_declared_depth_stays(tmp_path):
    twelve_bit_tiff(tmp_path / "x.tif")
    assert highest_value(tmp_path / "x.tif") is None
    np.testing.assert_array_equal(read_picture(tmp_path / "x.tif", bits=8), read_picture(tmp_path / "x.tif"))


def test_pictures_of_eight_bits_do_not_depend_on_the_depth_of_others(tmp_path):
    for name, values in (("grey.png", GREY), ("colour.png", COLOUR)):
        Image.fromarray(values).save(tmp_path / name)
        assert highest_value(tmp_path / name) is None
        np.testing.assert_array_equal(read_picture(tmp_path / name, bits=12), read_picture(tmp_path / name))


def test_values_above_white_are_clipped_and_named_once(tmp_path, capsys):
    for values in (DEEP_GREY, DEEP_COLOUR):
        assert np.asarray(as_image(values, bits=12))[:, 20:].min(axis=(0, 1))[0] in (90, 255)
    assert capsys.readouterr().err.count("values above 4095, which is white in the normal pictures, are clipped") == 1


def test_a_turned_picture_of_deep_colour_is_read_upright(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", TWELVE_COLOUR, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    read = np.asarray(read_picture(tmp_path / "x.tif", bits=12)).astype(int)
    assert read.shape == (32, 24, 3) and np.abs(read - np.rot90(COLOUR, -1)).max() <= 1
