from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.progress import progress_bar
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    compute,
    compute_proposals,
    proposal_recall,
    search,
    selective_search,
    write_proposals,
)
from fastrcnn_engine.data.proposals.selective_search import MODES
from fastrcnn_engine.data.records import ImageRecord


def scene(height=90, width=120, seed=0):
    """Three filled boxes on noise; returns the image and the boxes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (height, width, 3)).astype(np.uint8)
    boxes = np.array([[10, 12, 39, 50], [60, 20, 99, 49], [48, 60, 80, 85]], np.float32)
    colours = [(230, 40, 30), (20, 60, 220), (240, 230, 30)]
    for (x1, y1, x2, y2), colour in zip(boxes.astype(int), colours, strict=True):
        image[y1 : y2 + 1, x1 : x2 + 1] = colour
    return image, boxes


def best_iou(objects, candidates):
    low = np.maximum(objects[:, None, :2], candidates[:, :2])
    high = np.minimum(objects[:, None, 2:], candidates[:, 2:])
    inter = np.prod(np.clip(high - low + 1, 0, None), axis=2)
    areas = [np.prod(b[:, 2:] - b[:, :2] + 1, axis=1) for b in (objects, candidates)]
    return (inter / (areas[0][:, None] + areas[1] - inter)).max(axis=1)


def save_scenes(folder, count=6):
    items = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(scene(seed=i)[0]).save(path)
        items.append((f"image {i}", path))
    return items


# --------------------------------------------------------------------------------- selective_search


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("short_side", [None, 90, 60])
def test_boxes_frame_the_objects_in_pixels_of_the_image(mode, short_side):
    image, objects = scene()
    boxes = selective_search(image, mode=mode, short_side=short_side)
    assert boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4
    if short_side == 60:
        assert best_iou(objects, boxes).min() > 0.9
    else:  # plain boxes are found to the pixel: an error of one in either end would show
        assert best_iou(objects, boxes).min() == 1.0


@pytest.mark.parametrize("short_side", [None, 31, 47])
def test_boxes_are_whole_pixels_inside_the_image_and_come_once(short_side):
    image, _ = scene(height=95, width=143)
    boxes = selective_search(image, short_side=short_side, min_size=5)
    x1, y1, x2, y2 = boxes.T
    assert (boxes == np.round(boxes)).all()
    assert x1.min() == 0 and y1.min() == 0 and x2.max() == 142 and y2.max() == 94
    assert (x2 - x1 + 1).min() >= 5 and (y2 - y1 + 1).min() >= 5
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_min_size_counts_pixels_of_the_image_not_of_the_shrunk_one():
    image, objects = scene()
    boxes = selective_search(image, short_side=60, min_size=35)
    assert (boxes[:, 2:] - boxes[:, :2] + 1).min() >= 35
    assert best_iou(objects, boxes)[0] < 0.9  # 30 pixels wide
    loose = selective_search(image, short_side=60, min_size=1)
    kept = (loose[:, 2:] - loose[:, :2] + 1).min(axis=1) >= 35
    np.testing.assert_array_equal(boxes, loose[kept])


@pytest.mark.parametrize("mode", MODES)
def test_the_same_image_gives_the_same_array(mode):
    # OpenCV returns the boxes in an order drawn with C's rand(): never the same twice in a process.
    image, _ = scene()
    first = selective_search(image, mode=mode)
    for _ in range(2):
        np.testing.assert_array_equal(selective_search(image, mode=mode), first)


def test_opencv_gets_the_colours_in_its_own_order(monkeypatch):
    module, seen = sys.modules[selective_search.__module__], []
    fine = module._fine
    monkeypatch.setattr(module, "_fine", lambda cv2, s, bgr: seen.append(bgr) or fine(cv2, s, bgr))
    image, _ = scene()
    selective_search(image, short_side=None)
    np.testing.assert_array_equal(seen[0], image[:, :, ::-1])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (12, 12)])
def test_tiny_and_flat_images_do_not_crash(size):
    for mode in MODES:
        boxes = selective_search(np.full((*size, 3), 7, np.uint8), mode=mode, min_size=1)
        assert boxes.tolist() == [[0, 0, size[1] - 1, size[0] - 1]]
        assert selective_search(np.zeros((*size, 3), np.uint8), mode=mode, min_size=20).shape == (
            0,
            4,
        )


@pytest.mark.parametrize(
    "image, options, message",
    [
        (np.zeros((9, 9, 3), np.uint8), {"mode": "best"}, "mode must be one of fast.*'best'"),
        (np.zeros((9, 9), np.uint8), {}, r"\(9, 9\)"),
        (np.zeros((9, 9, 3), np.float32), {}, "float32"),
        (np.zeros((9, 0, 3), np.uint8), {}, r"\(9, 0, 3\)"),
        (np.zeros((9, 9, 3), np.uint8), {"short_side": 0}, "short_side"),
    ],
)
def test_wrong_arguments_are_named(image, options, message):
    with pytest.raises(ValueError, match=message):
        selective_search(image, **options)


def test_a_missing_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-contrib-python-headless"):
        selective_search(scene()[0])
    opencv = type(sys)("cv2")  # OpenCV without contrib
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    with pytest.raises(ImportError, match="no contrib.*opencv-contrib-python-headless"):
        selective_search(scene()[0])
    opencv.ximgproc = type(sys)("ximgproc")  # what is left where another is installed over it
    with pytest.raises(ImportError, match="two OpenCVs.*--force-reinstall"):
        selective_search(scene()[0])


# ----------------------------------------------------------------------------------------- the file


def some_boxes(count, seed=0):
    low = np.random.default_rng(seed).uniform(0, 50, (count, 2))
    return np.concatenate([low, low + 10], axis=1).astype(np.float32)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "new folder" / "proposals.npz"
    items = {"a": some_boxes(5), "with space/and slash": some_boxes(3, 1), "file": some_boxes(0)}
    items["Ünïcode"] = some_boxes(1, 2)
    items["columns first"] = np.asfortranarray(some_boxes(6))
    items["a pixel, a line"] = np.float32([[3, 3, 3, 3], [5, 4, 9, 4]])
    write_proposals(path, items.items(), settings={"mode": "fast", "short_side": None})
    store = ProposalStore(path)
    assert len(store) == 6 and list(store) == list(store.keys()) == list(items)
    assert "a" in store and "b" not in store
    assert store.settings == {"mode": "fast", "short_side": None}
    with np.load(path) as plain:  # it is a common .npz file
        for image_id, boxes in items.items():
            np.testing.assert_array_equal(store[image_id], boxes)
            assert store[image_id].dtype == np.float32 and store[image_id].shape == boxes.shape
            np.testing.assert_array_equal(plain[image_id], boxes)
    assert [p.name for p in path.parent.iterdir()] == ["proposals.npz"]


def test_arrays_are_aligned_read_only_views_of_the_mapped_file(tmp_path):
    path = tmp_path / "proposals.npz"
    write_proposals(path, [("xü"[n % 2] * n, some_boxes(n, n)) for n in range(1, 40)])
    store = ProposalStore(path)
    buffer = np.frombuffer(store._bytes, np.uint8)
    for image_id in store:
        array = store[image_id]
        assert np.shares_memory(array, buffer)
        assert not array.flags.writeable and array.flags.aligned
        assert (array.ctypes.data - buffer.ctypes.data) % 64 == 0


def test_a_copy_in_another_process_maps_the_file_too(tmp_path):
    write_proposals(tmp_path / "proposals.npz", [("a", some_boxes(4))])
    store = ProposalStore(tmp_path / "proposals.npz")
    for other in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        np.testing.assert_array_equal(other["a"], store["a"])


def test_files_of_numpy_are_read_too(tmp_path):
    np.savez(tmp_path / "plain.npz", a=some_boxes(4))
    store = ProposalStore(tmp_path / "plain.npz")
    np.testing.assert_array_equal(store["a"], some_boxes(4))
    assert store.settings is None


def test_equal_contents_are_equal_files(tmp_path):
    for name in ("one", "two"):
        write_proposals(tmp_path / name, [("a", some_boxes(9))], settings={"b": 1, "a": 2})
        time.sleep(0.01)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_missing_image_is_named_with_the_file(tmp_path):
    write_proposals(tmp_path / "p.npz", [("a", some_boxes(4))])
    with pytest.raises(ValueError, match=r"p\.npz: .* 'b'; images in it: 1, such as 'a'"):
        ProposalStore(tmp_path / "p.npz")["b"]


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz.*fastrcnn-engine proposals"):
        ProposalStore(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz: not an \.npz"):
        ProposalStore(tmp_path / "text.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    for endless in (tmp_path / "pipe.npz", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match=f"{endless}: not a regular file"):
            ProposalStore(endless)
    np.savez_compressed(tmp_path / "packed.npz", a=some_boxes(4))
    with pytest.raises(ValueError, match=r"a\.npy is compressed"):
        ProposalStore(tmp_path / "packed.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("a.npy", "no array at all")
    with pytest.raises(ValueError, match=r"a\.npy is no array"):
        ProposalStore(tmp_path / "zip.npz")["a"]


def test_damaged_files_are_named(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "p.npz"
    items = [("first", some_boxes(4)), ("second", some_boxes(2))]
    write_proposals(path, items, settings={"method": "grid"}, fingerprints={"first": "0a"})
    good, refused = path.read_bytes(), 0
    for turn in range(2000):
        bad = bytearray(good)
        if turn % 5 == 0:
            bad = bad[: rng.integers(1, len(bad))]
        # Most of what may be wrong stands in the directory at the end.
        for at in rng.integers(0 if turn % 2 else len(bad) * 2 // 3, len(bad), size=3):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        try:
            store = ProposalStore(path)
            assert all(len(store[image_id]) < 5 for image_id in store)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
    assert refused > 500


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("'shape': (-5, 4), ", "'a' are said to be -5, more than are in the file"),
        ("'shape': (1000000, 4), ", "said to be 1000000, more"),
        ("'shape': (4611686018427387904, 4), ", "said to be 4611686018427387904, more"),
        ("(" * 40, "a.npy is no array"),
    ],
)
def test_headers_that_say_too_much_are_refused(tmp_path, header, says):
    text = f"{{'descr': '<f4', 'fortran_order': False, {header}}}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0\x76\0" + text + bytes(80))
    with pytest.raises(ValueError, match=rf"p\.npz: .*{says}"):
        ProposalStore(tmp_path / "p.npz")["a"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_files_that_say_two_things_or_nonsense_are_refused(tmp_path):
    path = tmp_path / "p.npz"
    for names, comment, says in (
        ("aa", b"", "two arrays have one name"),
        ("a", b"[1]", "its comment must be settings of a search, got"),
        ("a", b"hello", "not an .npz file"),
        ("a", b"[" * 30_000, "not an .npz file"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = comment
            for name in names:
                archive.writestr(f"{name}.npy", "")
        with pytest.raises(ValueError, match=rf"p\.npz: {says}"):
            ProposalStore(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 5), np.float32),
        np.zeros(4, np.float32),
        np.zeros((3, 4), np.float64),
        np.asfortranarray(np.zeros((3, 4), np.float32)),
        np.zeros((3, 4), ">f4"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array):
    np.savez(tmp_path / "p.npz", a=array)
    with pytest.raises(ValueError, match=r"p\.npz: proposals of 'a' must be \(P, 4\) float32"):
        ProposalStore(tmp_path / "p.npz")["a"]


@pytest.mark.parametrize(
    "items, message",
    [
        ([("a", some_boxes(1)), ("a", some_boxes(1))], "'a' come twice"),
        ([("a", np.zeros((2, 5)))], r"\(P, 4\), got \(2, 5\)"),
        ([("a", [[0, 0, 5, 5], [0, 0, np.nan, 5]])], "'a', row 1: expected finite"),
        ([("a", [[6, 0, 5, 5]])], "row 0: expected finite x1 <= x2"),
        ([("a\0b", some_boxes(1))], r"no zero byte, got 'a\\x00b'"),
        ([("a" * 65532, some_boxes(1))], "image id must have at most 65535 bytes, got 65536: aaa"),
    ],
)
def test_bad_items_leave_the_old_file_alone(tmp_path, items, message):
    path = tmp_path / "p.npz"
    write_proposals(path, [("old", some_boxes(2))])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        write_proposals(path, items)
    with pytest.raises(ValueError, match="settings must have at most 65535 bytes"):
        write_proposals(path, [], settings={"note": "x" * 65536})
    with pytest.raises(ValueError, match="the fingerprint of image 'a' must have at most 65535 by"):
        write_proposals(path, [("a", some_boxes(1))], fingerprints={"a": "x" * 65536})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_the_file_is_whole_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    write_proposals(tmp_path / "p.npz", [("a", some_boxes(4))])
    assert sizes[0] == (tmp_path / "p.npz").stat().st_size  # then the folder


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*p\.npz: No space left on device"):
        write_proposals(tmp_path / "p.npz", [("a", some_boxes(4))])
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------- many images


def test_as_many_are_searched_at_once_as_the_process_may_use_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    pool = Mock(wraps=ThreadPoolExecutor)
    monkeypatch.setattr(compute, "ThreadPoolExecutor", pool)
    compute_proposals(save_scenes(tmp_path, 1), tmp_path / "p.npz", Search("grid"), progress=False)
    pool.assert_called_once_with(2)
    compute_proposals([], tmp_path / "q.npz", Search("grid"), workers=5, progress=False)
    pool.assert_called_with(5)


def test_the_pool_is_the_only_one_while_opencv_searches(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    before, seen = cv2.getNumThreads(), []

    def noted(image, **options):
        seen.append(cv2.getNumThreads())
        return selective_search(image, **options)

    monkeypatch.setattr(search, "selective_search", noted)
    cv2.setNumThreads(3)
    try:
        compute_proposals(save_scenes(tmp_path, 2), tmp_path / "p.npz", workers=1, progress=False)
        assert seen == [1, 1] and cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_a_long_run_saves_as_it_goes(tmp_path, monkeypatch):
    """A kill loses no more than SAVE_SECONDS of work."""
    items, out = save_scenes(tmp_path, 3), tmp_path / "p.npz"

    def waits(path):
        end = time.monotonic() + 10
        while path == items[-1][1] and not out.exists() and time.monotonic() < end:
            time.sleep(0.01)
        saved.append(out.exists())
        return load_image(path)

    saved = []
    monkeypatch.setattr(compute, "SAVE_SECONDS", -1)
    monkeypatch.setattr(compute, "load_image", waits)
    store = compute_proposals(items, out, Search("grid"), workers=1, progress=False)
    assert saved[-1] and list(store) == [image_id for image_id, _ in items]


def test_it_saves_every_two_minutes_not_with_every_image_from_then_on(tmp_path, monkeypatch):
    clock = Mock(monotonic=Mock(side_effect=[0, 119, 240, 241, 242]))
    saves = Mock(wraps=write_proposals)
    monkeypatch.setattr(compute, "time", clock)
    monkeypatch.setattr(compute, "write_proposals", saves)
    items = save_scenes(tmp_path, 3)
    compute_proposals(items, tmp_path / "p.npz", Search("grid"), workers=1, progress=False)
    assert saves.call_count == 2  # after the second image, and at the end


def test_a_second_run_searches_only_what_is_missing(tmp_path, monkeypatch):
    items = save_scenes(tmp_path)
    out = tmp_path / "p.npz"
    compute_proposals(items[1:4], out, progress=False)
    store = ProposalStore(out)
    first = {image_id: store[image_id].copy() for image_id in store}
    searched, lines = [], []

    def counted(image, **options):
        searched.append(image)
        return selective_search(image, **options)

    def noted(shown):
        lines.append(progress_bar(shown))
        return lines[-1]

    monkeypatch.setattr(search, "selective_search", counted)
    monkeypatch.setattr(compute, "progress_bar", noted)
    store = compute_proposals(items[:3], out, progress=False)
    assert len(searched) == 1
    (line,) = lines[0].tasks
    assert (line.completed, line.total) == (3, 3)  # not with what else is in the file
    assert sorted(store) == [f"image {i}" for i in range(4)]  # none is lost
    for image_id, boxes in first.items():
        np.testing.assert_array_equal(store[image_id], boxes)
    before = out.stat().st_mtime_ns
    compute_proposals(items[:4], out, progress=False)
    assert len(searched) == 1 and out.stat().st_mtime_ns == before


def test_an_image_that_changed_is_searched_again(tmp_path):
    items = save_scenes(tmp_path, 3)
    out = tmp_path / "p.npz"
    compute_proposals(items, out, progress=False)
    Image.fromarray(scene(70, 150, seed=9)[0]).save(items[1][1])  # same name, another picture
    store = compute_proposals(items, out, progress=False)
    assert len(store) == 3
    for image_id, path in items:
        np.testing.assert_array_equal(store[image_id], selective_search(load_image(path)))


def test_two_searches_into_one_file_lose_nothing(tmp_path, capsys):
    items = save_scenes(tmp_path, 6)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Search):
        def boxes(self, image, image_id):
            begun.set()
            assert go_on.wait(60)
            return super().boxes(image, image_id)

    out = tmp_path / "out" / "p.npz"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(compute_proposals, items[:4], out, Slow("grid"), progress=False)
        assert begun.wait(60)
        second = pool.submit(compute_proposals, items[2:], out, Search("grid"), workers=1)
        deadline = time.monotonic() + 60
        while "waiting for another search" not in capsys.readouterr().out:
            assert time.monotonic() < deadline and not second.done()
            time.sleep(0.01)
        assert not out.exists()
        go_on.set()
        first.result(60)
        assert list(second.result(60)) == ["image 0", "image 1"] + [i for i, _ in items[2:]]
    assert list(out.parent.iterdir()) == [out]


def test_a_search_that_was_killed_keeps_nobody_waiting(tmp_path):
    (tmp_path / ".p.npz.lock").touch()
    compute_proposals(save_scenes(tmp_path, 1), tmp_path / "p.npz", Search("grid"), progress=False)
    assert not (tmp_path / ".p.npz.lock").exists()


def test_files_of_parts_are_taken_over(tmp_path, monkeypatch):
    items = save_scenes(tmp_path, count=5)
    how = {"search": Search(short_side=60), "progress": False}
    compute_proposals(items, tmp_path / "whole.npz", **how)
    parts = [tmp_path / "a.npz", tmp_path / "absent.npz", tmp_path / "b.npz"]
    compute_proposals(items[::3], parts[0], **how)
    compute_proposals(items[1::3], parts[2], **how)
    searched = []

    def counting(image, **options):
        searched.append(image)
        return selective_search(image, **options)

    monkeypatch.setattr(search, "selective_search", counting)
    out = tmp_path / "joined.npz"
    compute_proposals(items, out, parts=parts, **how)
    assert len(searched) == 1  # the third; nothing tells how the file came about
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    before = out.stat().st_ino
    compute_proposals(items, out, parts=parts, **how)
    assert len(searched) == 1 and out.stat().st_ino == before
    # Parts alone are enough, for a new file and for what one lacks.
    compute_proposals(items[::3], tmp_path / "one.npz", parts=parts[:1], **how)
    assert set(ProposalStore(tmp_path / "one.npz")) == {"image 0", "image 3"}
    compute_proposals([items[0], items[4]], tmp_path / "one.npz", parts=parts, **how)
    assert len(searched) == 1 and len(ProposalStore(tmp_path / "one.npz")) == 4
    # An image that has changed since is searched again.
    Image.fromarray(scene(seed=9)[0]).save(items[0][1])
    compute_proposals(items, tmp_path / "new.npz", parts=parts, **how)
    assert len(searched) == 3
    with pytest.raises(ValueError, match=r"a\.npz: holds proposals made with"):
        compute_proposals(items, tmp_path / "other.npz", Search(short_side=50), parts=parts)
    assert not (tmp_path / "other.npz").exists()


def test_proposals_of_other_settings_are_never_mixed(tmp_path):
    items = save_scenes(tmp_path, 2)
    out = tmp_path / "p.npz"
    compute_proposals(items[:1], out, Search(mode="fast"), progress=False)
    before = out.read_bytes()
    for other in (Search(), Search(mode="fast", short_side=99), Search(mode="fast", min_size=1)):
        with pytest.raises(ValueError, match=r"p\.npz: holds proposals made with .*'fast'"):
            compute_proposals(items, out, other, progress=False)
    assert out.read_bytes() == before


def test_an_error_names_the_image_and_keeps_what_is_done(tmp_path):
    items = save_scenes(tmp_path, 4)
    items[2][1].write_bytes(b"no image")
    out = tmp_path / "p.npz"
    with pytest.raises(ValueError, match=r"2\.png: not readable"):
        compute_proposals(items, out, workers=1, progress=False)
    store = ProposalStore(out)
    assert "image 0" in store and "image 1" in store and "image 2" not in store
    with pytest.raises(ValueError, match="'image 0' comes twice"):
        compute_proposals([items[0], items[0]], out, progress=False)


def test_images_that_cannot_be_read_are_told_and_searched_once_they_can(tmp_path):
    items = save_scenes(tmp_path, 4)
    good = compute_proposals(items, tmp_path / "good.npz", progress=False)
    kept = {path: path.read_bytes() for _, path in items[1:3]}
    items[1][1].write_bytes(b"no image")
    items[2][1].unlink()
    out = tmp_path / "p.npz"
    for _ in range(2):  # by the second run, too
        errors = []
        store = compute_proposals(items, out, progress=False, errors=errors)
        missing, broken = sorted(errors, key=lambda line: "1.png" in line)
        assert "2.png: no such image file" in missing and "1.png: not readable" in broken
        assert [len(store[image_id]) > 0 for image_id, _ in items] == [True, False, False, True]
    # What was found before an image went missing stays.
    assert len(compute_proposals(items, good.path, progress=False, errors=[])[items[2][0]])
    with pytest.raises((OSError, ValueError)):
        compute_proposals(items, out, progress=False)
    for path, content in kept.items():
        path.write_bytes(content)
    compute_proposals(items, out, progress=False)
    compute_proposals(items, good.path, progress=False)
    assert out.read_bytes() == good.path.read_bytes()


INTERRUPTED = """
import itertools, os, signal, sys
from pathlib import Path
from fastrcnn_engine.data.proposals import compute_proposals, search

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
numbers = itertools.count(1)  # two searches run at once: each has a number of its own
selective_search = search.selective_search

def search_then_interrupt(image, **options):
    number = next(numbers)
    boxes = selective_search(image, **options)
    if number == 10:
        os.kill(os.getpid(), signal.SIGINT)
    return boxes

search.selective_search = search_then_interrupt
folder = Path(sys.argv[1])
items = [(str(i), folder / f"{i % 6}.png") for i in range(1000)]
compute_proposals(items, folder / "p.npz", workers=2)
"""


def test_ctrl_c_stops_soon_and_keeps_what_is_done(tmp_path):
    save_scenes(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode != 0 and "KeyboardInterrupt" in run.stderr
    store = ProposalStore(tmp_path / "p.npz")
    assert 10 <= len(store) < 100
    np.testing.assert_array_equal(store["0"], selective_search(load_image(tmp_path / "0.png")))
    assert not list(tmp_path.glob(".*.tmp"))


def test_ctrl_c_while_searches_are_queued_keeps_what_is_done(tmp_path, monkeypatch):
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args, **options):
            if queued:
                wait(queued)
                raise KeyboardInterrupt
            queued.append(super().submit(*args, **options))
            return queued[-1]

    queued = []
    save_scenes(tmp_path)
    monkeypatch.setattr("fastrcnn_engine.data.proposals.compute.ThreadPoolExecutor", Interrupted)
    items = [(str(i), tmp_path / f"{i}.png") for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        compute_proposals(items, tmp_path / "p.npz", workers=1, progress=False)
    assert list(ProposalStore(tmp_path / "p.npz")) == ["0"]


def test_the_search_lets_other_threads_run():
    """Threads fill the cores only because OpenCV frees Python's lock; this would show if it did
    not."""
    image, _ = scene(240, 320)
    ticks, stop = 0, threading.Event()

    def tick():
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    before, start = ticks, time.monotonic()
    selective_search(image)
    seconds, during = time.monotonic() - start, ticks - before
    stop.set()
    thread.join()
    assert during > 20 * seconds  # some 900 a second; none at all while the lock is held


# ------------------------------------------------------------------------------------------- recall


def record(image_id, boxes, labels, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    difficult = np.array(difficult or [False] * len(boxes), bool)
    return ImageRecord(image_id, None, 100, 100, boxes, np.array(labels, np.int64), difficult)


def test_recall_by_hand():
    records = [
        record("a", [[0, 0, 9, 9], [20, 20, 39, 39], [50, 50, 59, 59]], [1, 2, 1], [0, 0, 1]),
        record("b", [[0, 0, 9, 9]], [2]),
        record("c", [], []),
    ]
    store = {
        "a": np.array([[0, 0, 9, 4], [20, 20, 39, 39], [70, 70, 80, 80]], np.float32),
        "b": np.zeros((0, 4), np.float32),
        "c": np.array([[0, 0, 5, 5]], np.float32),
    }
    result = proposal_recall(records, store, (0.5, 0.7))  # IoU: 0.5 exactly, 1, none; one difficult
    assert result["images"] == 3 and result["objects"] == 3
    assert result["mean_boxes"] == pytest.approx(4 / 3)
    assert result["recall"] == {0.5: pytest.approx(2 / 3), 0.7: pytest.approx(1 / 3)}
    assert result["recall_by_label"] == {1: {0.5: 1.0, 0.7: 0.0}, 2: {0.5: 0.5, 0.7: 0.5}}
    assert proposal_recall(records[2:], store)["recall"] == {0.5: None, 0.7: None}
    with pytest.raises(ValueError, match="no proposals for image 'd'"):
        proposal_recall([record("d", [], [])], store)


def test_an_overlap_of_seven_tenths_passes_that_threshold_whatever_its_type():
    store = {"a": np.array([[0, 0, 9, 6]], np.float32)}
    for threshold in (0.7, np.float64(0.7), np.float32(0.7)):
        found = proposal_recall([record("a", [[0, 0, 9, 9]], [1])], store, [threshold])
        assert found["recall"] == {threshold: 1.0}
