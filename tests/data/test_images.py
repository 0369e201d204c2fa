from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.preparation import Preprocessing, batch_images, flip_boxes, prepare_image
from fastrcnn_engine.data.proposals.store import fingerprint


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resize_reference(image, factor):
    """Bilinear, half-pixel centres, border clamped, in float64, pixel rows first (as
    cv2.resize with INTER_LINEAR, which the original calls)."""
    for axis in (0, 1):
        n = image.shape[axis]
        source = (np.arange(max(round(n * factor), 1)) + 0.5) / factor - 0.5
        source = np.clip(source, 0, n - 1)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, n - 1)
        share = (source - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


@pytest.mark.parametrize(
    "height, width, factor",
    [
        (375, 500, 1.6),  # 600 x 800
        (480, 640, 1.25),
        (333, 500, 600 / 333),
        (300, 500, 2.0),  # the long side reaches 1000 and does not pass it
        (600, 800, 1.0),
        (200, 1000, 1.0),
        (1200, 1600, 0.5),
        (300, 2000, 0.5),
    ],
)
def test_scale_follows_short_side_unless_the_long_side_passes_the_cap(height, width, factor):
    assert Preprocessing().scale(height, width) == factor
    assert Preprocessing().scale(width, height) == factor


def test_the_cap_compares_the_rounded_long_side_strictly():
    # 100 x 150 to short side 67: the long side 100.5 rounds to 100 (half to even) and may stay
    assert Preprocessing(short_side=67, max_side=100).scale(100, 150) == 0.67
    assert Preprocessing(short_side=67, max_side=99).scale(100, 150) == 99 / 150


@pytest.mark.parametrize("height, width", [(37, 53), (60, 41), (48, 64), (31, 97), (7, 5)])
@pytest.mark.parametrize(
    "short_side, max_side", [(50, 83), (30, 40), (61, 1000), (20, 20), (97, 98)]
)
def test_resize_equals_the_reference_and_opencv(height, width, short_side, max_side):
    cv2 = pytest.importorskip("cv2")
    image = random_image(height, width)
    preprocessing = Preprocessing(short_side=short_side, max_side=max_side)
    tensor, factor = prepare_image(image, preprocessing)
    assert tensor.dtype == torch.float32

    floats = image[:, :, ::-1].astype(np.float32) - np.float32(
        preprocessing.mean
    )  # BGR, mean first
    theirs = cv2.resize(floats, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    truth = resize_reference(floats.astype(np.float64), factor)
    ours = tensor.permute(1, 2, 0).numpy()
    assert ours.shape == theirs.shape == truth.shape
    # A float32 sample position near 1000 is off by 6e-5 pixels; neighbours differ by 255 at most.
    rule = 255 * 2 * max(height, width) * 2.0**-24 + 4 * 255 * 2.0**-24
    assert np.abs(ours - truth).max() <= rule
    assert np.abs(theirs - truth).max() <= 2 * rule
    assert np.abs(ours - theirs).max() <= 3 * rule


def test_size_rounds_half_to_even():
    tensor, factor = prepare_image(random_image(10, 25), Preprocessing(short_side=5, max_side=50))
    assert factor == 0.5 and tensor.shape == (3, 5, 12)
    tensor, factor = prepare_image(random_image(10, 27), Preprocessing(short_side=5, max_side=50))
    assert tensor.shape == (3, 5, 14)


def test_channel_order_mean_and_std():
    image = random_image(8, 9)
    rgb, factor = prepare_image(
        image, Preprocessing("RGB", (1, 2, 3), (4, 5, 6), short_side=8, max_side=100)
    )
    assert factor == 1.0
    np.testing.assert_array_equal(
        rgb.permute(1, 2, 0).numpy(),
        (image.astype(np.float32) - np.float32([1, 2, 3])) / np.float32([4, 5, 6]),
    )
    bgr, _ = prepare_image(
        image, Preprocessing("BGR", (3, 2, 1), (6, 5, 4), short_side=8, max_side=100)
    )
    assert torch.equal(bgr, rgb.flip(0))


def test_flip_mirrors_before_the_resize_and_leaves_the_image_alone():
    image = random_image(20, 33)
    before = image.copy()
    preprocessing = Preprocessing(short_side=29, max_side=1000)
    flipped, factor = prepare_image(image, preprocessing, flip=True)
    mirrored, same_factor = prepare_image(image[:, ::-1], preprocessing)
    assert factor == same_factor and torch.equal(flipped, mirrored)
    assert not torch.equal(flipped, prepare_image(image, preprocessing)[0])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (7, 1)])
def test_images_of_one_row_or_column_are_mirrored_too(height, width, order):
    image = random_image(height, width)
    preprocessing = Preprocessing(order, (0, 0, 0), short_side=3, max_side=30)
    for flip, mirrored in ((False, image), (True, image[:, ::-1])):
        tensor, factor = prepare_image(image, preprocessing, flip=flip)
        colours = mirrored if order == "RGB" else mirrored[:, :, ::-1]
        expected = resize_reference(colours.astype(np.float64), factor)
        np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-3)


def test_very_long_images_keep_one_pixel():
    tensor, factor = prepare_image(random_image(1, 4000), Preprocessing())
    assert factor == 0.25 and tensor.shape == (3, 1, 1000)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
    ],
)
def test_other_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare_image(image, Preprocessing())


def test_preprocessing_survives_json_and_refuses_nonsense():
    preprocessing = Preprocessing("RGB", (1, 2, 3), (4, 5, 6), 320, 500)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    for bad in (
        {"channel_order": "GBR"},
        {"mean": (1, 2)},
        {"mean": (1, 2, np.nan)},
        {"std": (1, 0, 1)},
        {"short_side": 0},
        {"short_side": 1001},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Preprocessing(**bad)
    with pytest.raises(ValueError, match="keys"):
        Preprocessing.from_dict({**preprocessing.to_dict(), "antialias": True})
    with pytest.raises(ValueError, match="keys"):
        Preprocessing.from_dict({"mean": [1, 2, 3]})


def test_several_short_sides_are_the_levels_of_a_pyramid():
    paper = Preprocessing(short_side=(480, 576, 688, 864, 1200), max_side=2000)
    levels = paper.levels()
    assert [level.short_side for level in levels] == [480, 576, 688, 864, 1200]
    assert {level.max_side for level in levels} == {2000}
    assert [level.scale(375, 500) for level in levels] == [side / 375 for side in paper.short_side]
    # 375 x 1000: the largest would be 3200 wide, the cap makes it 2000.
    assert levels[-1].scale(375, 1000) == 2.0
    assert Preprocessing.from_dict(json.loads(json.dumps(paper.to_dict()))) == paper
    image = random_image(9, 12)
    with pytest.raises(ValueError, match=r"short_side is \(5, 8\).*levels\(\)"):
        prepare_image(image, Preprocessing(short_side=(5, 8)))
    for level in Preprocessing(short_side=(5, 8)).levels():
        alone = Preprocessing(short_side=level.short_side)
        assert torch.equal(prepare_image(image, level)[0], prepare_image(image, alone)[0])


def test_one_short_side_is_a_number():
    assert Preprocessing(short_side=(480,)) == Preprocessing(short_side=480)
    assert Preprocessing(short_side=480).levels() == (Preprocessing(short_side=480),)
    old = {
        "channel_order": "RGB", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0],
        "short_side": 320, "max_side": 500,
    }  # fmt: skip
    assert Preprocessing.from_dict(old) == Preprocessing("RGB", (1, 2, 3), (4, 5, 6), 320, 500)
    assert Preprocessing.from_dict(old).to_dict() == old


@pytest.mark.parametrize(
    "short_side", [(), (0, 5), (-3, 5), (8, 5), (5, 5), (480, 576, 1001), [600, 480]]
)
def test_short_sides_rise_and_stay_below_the_cap(short_side):
    with pytest.raises(ValueError, match="short_side must be .* rising") as error:
        Preprocessing(short_side=short_side)
    assert f"got short_side={short_side}, max_side=1000" in str(error.value)


def test_batches_are_zero_padded_right_and_below():
    a, b = torch.ones(3, 34, 57), torch.full((3, 36, 55), 2.0)
    batch = batch_images([a, b])
    assert batch.shape == (2, 3, 36, 57)
    assert torch.equal(batch[0, :, :34], a) and torch.equal(batch[1, :, :, :55], b)
    assert batch.sum() == a.sum() + b.sum()
    assert torch.equal(batch_images([a]), a[None])
    thin = torch.ones(3, 10, 1000)
    for images in ([thin], [thin, thin]):
        batch = batch_images(images)
        assert batch.shape == (len(images), 3, 32, 1000)
        assert torch.equal(batch[0, :, :10], thin) and not batch[:, :, 10:].any()
    with pytest.raises(ValueError, match="empty"):
        batch_images([])
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\)"):
        batch_images([torch.zeros(1, 3, 4, 4)])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 50), st.data())
def test_flipped_boxes_frame_the_same_pixels(width, data):
    x1 = data.draw(st.integers(0, width - 1))
    x2 = data.draw(st.integers(x1, width - 1))
    columns = np.arange(width)
    box = np.array([[x1, 3, x2, 8]], np.float32)
    before = box.copy()
    f1, y1, f2, y2 = flip_boxes(box, width)[0].astype(int)
    assert set(columns[::-1][f1 : f2 + 1]) == set(range(x1, x2 + 1))
    assert (y1, y2) == (3, 8)
    np.testing.assert_array_equal(box, before)
    np.testing.assert_array_equal(flip_boxes(flip_boxes(box, width), width), box)
    tensor = flip_boxes(torch.from_numpy(box), width)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), flip_boxes(box, width))


def test_flip_boxes_takes_no_boxes_and_refuses_other_shapes():
    assert flip_boxes(np.zeros((0, 4), np.float32), 9).shape == (0, 4)
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        flip_boxes(np.zeros((2, 5), np.float32), 9)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    grey = np.array([[0, 255], [255, 0], [0, 0]], np.uint8)
    source = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    source.save(path)
    image = load_image(path)
    assert image.shape == (3, 2, 3) and image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, np.repeat(grey[:, :, None], 3, axis=2))


def test_colours_arrive_as_rgb_and_alpha_is_left_out(tmp_path):
    pixels = np.array([[[255, 0, 1, 0], [0, 128, 255, 255]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.testing.assert_array_equal(load_image(tmp_path / "image.png"), pixels[:, :, :3])


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path, kind):
    path = tmp_path / "image.tif"  # of either byte order, as PNG is not
    Image.fromarray(np.array([[0, 256, 65535]], kind)).save(path)
    with Image.open(path) as image:
        assert image.mode == ("I;16" if kind == "<u2" else "I;16B")
    assert load_image(path)[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]


def test_sixteen_bit_pgm_keeps_its_upper_byte_too(tmp_path):
    (tmp_path / "image.pgm").write_bytes(b"P5 3 1 65535\n" + bytes([0, 0, 1, 0, 255, 255]))
    assert load_image(tmp_path / "image.pgm")[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]


def test_twelve_bit_grey_keeps_its_upper_eight(tmp_path):
    pixels = bytes([0xFF, 0xF0, 0x00, 0x80, 0x01, 0x00])  # 4095, 0, 2048, 256
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels
    end = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "image.tif").write_bytes(header + end)
    assert load_image(tmp_path / "image.tif")[0, :, 0].tolist() == [255, 0, 128, 16]


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(10, 20)).save(tmp_path / "image.jpg", exif=exif)
    assert load_image(tmp_path / "image.jpg").shape == (10, 20, 3)


@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_tiff_is_refused(tmp_path, orientation):
    """Pillow turns it by itself, grey ones wrongly."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, pixels = tmp_path / "image.tif", random_image(10, 20)
    Image.fromarray(pixels).save(path, exif=exif)
    if orientation in (0, 1, 9):  # none, and two that say nothing
        np.testing.assert_array_equal(load_image(path), pixels)
    else:
        says = rf"image\.tif: .*TIFF with orientation {orientation};"
        with pytest.raises(ValueError, match=says):
            load_image(path)


def test_files_that_are_no_images_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg"):
        load_image(tmp_path / "nothing.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.jpg: not readable as an image: none of JPEG, PNG"):
        load_image(tmp_path / "text.jpg")
    Image.fromarray(random_image(64, 64)).save(tmp_path / "short.jpg")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "short.jpg").read_bytes()[:800])
    with pytest.raises(ValueError, match=r"short\.jpg: not readable"):
        load_image(tmp_path / "short.jpg")
    for kind in ("float32", "int32"):
        Image.fromarray(np.ones((2, 2), kind)).save(tmp_path / f"{kind}.tif")
        with pytest.raises(ValueError, match=rf"{kind}\.tif.*range"):
            load_image(tmp_path / f"{kind}.tif")
    Image.fromarray(random_image(64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"bomb\.png: not readable as an image: .*exceeds limit"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "eps"])
def test_no_program_is_run_on_a_photo(tmp_path, monkeypatch, suffix):
    """Pillow has PostScript drawn by Ghostscript, whatever the name of the file."""
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / f"photo.{suffix}"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=rf"photo\.{suffix}: not readable as an image"):
        load_image(path)
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it passes over
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp", "gif", "ppm"])
def test_damaged_files_are_read_or_named(tmp_path, kind, monkeypatch):
    """Pillow has no list of what it raises: of a damaged PPM a ValueError without the file."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    rng = np.random.default_rng(0)
    path = tmp_path / f"image.{kind}"
    Image.fromarray(random_image(13, 11)).save(path)
    good = path.read_bytes()
    for _ in range(300):
        bad = bytearray(good)
        for at in rng.integers(min(len(bad), 200), size=4):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try:
            load_image(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: not readable as an image: ")


def test_a_machine_without_memory_makes_no_broken_image(tmp_path, monkeypatch):
    Image.fromarray(random_image(5, 6)).save(tmp_path / "image.png")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(MemoryError):
        load_image(tmp_path / "image.png")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("pipe", "folder", "loop"):
        for read in (load_image, fingerprint):
            with pytest.raises(FileNotFoundError, match=rf"{name}\.jpg: no such image file"):
                read(tmp_path / f"{name}.jpg")
