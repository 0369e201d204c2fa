"""detect: pictures, or a row for each of very many images."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.coco_files import write_instances
from fastrcnn_engine.commands import bulk, detection
from fastrcnn_engine.commands.detection import expand_folders
from fastrcnn_engine.data.coco import load_coco
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    compute_proposals,
    write_proposals,
)
from fastrcnn_engine.data.proposals.store import fingerprint
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.training import load_checkpoint

from .steps import failure, run, run_with_failures


def test_detect_writes_boxes_and_pictures(trained, drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    folder = tmp_path / "in"
    folder.mkdir()
    source = drawn / "JPEGImages" / "test_0000.jpg"
    Image.open(source).save(folder / "test_0000.tif")
    out = tmp_path / "out"
    run("detect", source, folder, "--checkpoint", trained, "--out", out, "--score-threshold", "0")
    found = json.loads((out / "detections.json").read_text())["images"]
    assert set(found) == {str(source), str(folder / "test_0000.tif")}
    # Two images of one name have a picture each, with boxes in it.
    pictures = sorted(path.name for path in out.glob("*.jpg"))
    assert pictures == ["test_0000-detections-2.jpg", "test_0000-detections.jpg"]
    assert all(found.values()), "a threshold of 0 leaves no image without detections"
    drawn_picture = out / "test_0000-detections.jpg"
    before, after = (np.asarray(Image.open(p)).astype(int) for p in (source, drawn_picture))
    assert before.shape == after.shape and np.abs(before - after).max() > 100
    text = capsys.readouterr().out
    assert "detections.json" in text
    counts = Counter(one["class"] for one in found[str(source)])
    assert len(counts) > 1
    row = re.search(rf"{re.escape(str(source))} +│ (.*?) +│ {re.escape(str(drawn_picture))}", text)
    assert row and set(row[1].split(", ")) == {f"{n} {name}" for name, n in counts.items()}


def test_what_became_of_many_images_is_told(trained, drawn, tmp_path, capsys, monkeypatch):
    told = bulk.BulkResult(tmp_path / "lines", done=4, before=3, failed=2, seconds=8.0)
    monkeypatch.setattr(detection, "detect_many", lambda *_, **__: told)
    many = ("detect", drawn / "JPEGImages", "--checkpoint", trained, "--out", tmp_path, "--many")
    run_with_failures(*many)
    words = f"4 done, 0.5 a second, 3 done before, 2 failed; results: {told.path}"
    assert words in capsys.readouterr().out


def test_an_image_that_cannot_be_read_costs_no_other_its_detections(
    trained, drawn, tmp_path, capsys
):
    good = drawn / "JPEGImages" / "test_0000.jpg"
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(good.read_bytes()[:900])
    run_with_failures("detect", bad, good, "--checkpoint", trained, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert list(found) == [str(good)]
    text = capsys.readouterr().out
    assert "none" in text  # of so short a training is as certain as that
    assert "1 image that cannot be read" in text and f"{bad}: not readable as an image" in text
    worse = tmp_path / "worse.jpg"
    worse.write_bytes(b"")
    run_with_failures("detect", bad, worse, "--checkpoint", trained, "--out", tmp_path / "none")
    text = capsys.readouterr().out
    assert f"{bad}: not" in text and f"{worse}: not" in text
    assert json.loads((tmp_path / "none" / "detections.json").read_text())["images"] == {}


def test_detect_writes_over_no_image_and_leaves_out_what_it_drew(trained, drawn, tmp_path):
    # A photo may have the name of a drawn picture; the second run finds the pictures of the first.
    photos = [tmp_path / "photo.jpg", tmp_path / "photo-detections.jpg"]
    for photo in photos:
        photo.write_bytes((drawn / "JPEGImages" / "test_0000.jpg").read_bytes())
    before = [photo.read_bytes() for photo in photos]
    for many in ((), (), ("--many",)):
        run("detect", tmp_path, "--checkpoint", trained, "--out", tmp_path,
            "--score-threshold", "0", *many)  # fmt: skip
        assert [photo.read_bytes() for photo in photos] == before
        found = json.loads((tmp_path / "detections.json").read_text())["images"]
        assert set(found) == set(map(str, photos))
        drawings = {path.name for path in tmp_path.glob("*.jpg") if path not in photos}
        assert drawings == {"photo-detections-2.jpg", "photo-detections-detections.jpg"}
    assert len((tmp_path / "detections.jsonl").read_text().splitlines()) == 2
    # Nor over a photo that is not asked for.
    run("detect", photos[0], "--checkpoint", trained, "--out", tmp_path)
    assert [photo.read_bytes() for photo in photos] == before
    assert len(list(tmp_path.glob("*.jpg"))) == len(photos) + len(drawings)
    # Named by itself a drawing is an image like any other.
    drawing = tmp_path / "photo-detections-2.jpg"
    run("detect", drawing, "--checkpoint", trained, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "photo-detections-2-detections.jpg").is_file()


def run_stopped(number: int, monkeypatch, *command) -> None:
    """Runs a command that Ctrl-C ends at its detection of that number."""
    calls, detect = itertools.count(1), bulk.detect_image

    def stops(*arguments, **options):
        if next(calls) == number:
            raise KeyboardInterrupt
        return detect(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(bulk, "detect_image", stops)
        run(*command)
    assert end.value.code == 130


def test_many_images_have_a_line_each_and_a_stopped_run_goes_on(
    trained, drawn, tmp_path, capsys, monkeypatch
):
    folder, bad, out = drawn / "JPEGImages", tmp_path / "bad.jpg", tmp_path / "out"
    bad.write_text("no image")
    images = sorted(folder.glob("*.jpg"))
    (tmp_path / "list.txt").write_text(f"{bad}\n\n{images[0]}\n{tmp_path / 'absent.jpg'}\n")
    command = ("detect", tmp_path / "list.txt", folder, "--many", "--checkpoint", trained,
               "--score-threshold", 0, "--out", out)  # fmt: skip
    run_stopped(3, monkeypatch, *command)
    path = out / "detections.jsonl"
    before = path.read_bytes()
    assert before.count(b"\n") == 4  # two images, and two that cannot be read
    path.write_bytes(before + b'{"image": "cut o')
    capsys.readouterr()
    run_with_failures(*command)  # though they were told by the run before
    assert path.read_bytes().startswith(before)
    text = " ".join(capsys.readouterr().out.split())
    assert "images: 4 done" in text and "4 done before, 2 failed" in text
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # images[0] is named twice and has one line; nothing but the lines and their origin was written.
    named = [str(bad), str(images[0]), str(tmp_path / "absent.jpg"), *map(str, images[1:])]
    assert [line["image"] for line in lines] == named
    assert "bad.jpg: not readable" in lines[0]["error"] and "no such" in lines[2]["error"]
    assert {one.name for one in out.iterdir()} == {
        "detections.jsonl", "detections.jsonl.made-by.json",
    }  # fmt: skip
    run("detect", images[0], "--checkpoint", trained,
        "--score-threshold", 0, "--out", tmp_path / "one")  # fmt: skip
    one = json.loads((tmp_path / "one" / "detections.json").read_text())["images"]
    assert one[str(images[0])] == lines[1]["detections"] != []

    parts = []
    for part, work in (("1/2", run_with_failures), ("2/2", run)):
        work(*command[:-1], tmp_path / "parts", "--shard", part)  # the first and third have failed
        text = (tmp_path / f"parts/detections.{part[0]}-of-2.jsonl").read_text()
        parts += [json.loads(line) for line in text.splitlines()]
    assert len(list((tmp_path / "parts").iterdir())) == 3  # and what made them
    assert len(parts) == 8 and {p["image"] for p in parts} == set(named)
    capsys.readouterr()
    run_with_failures(*command[:-1], tmp_path / "parts")  # the whole: its parts have all
    assert "images: 0 done, 8 done before" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "parts/detections.jsonl").read_bytes() == b""
    assert "shard is '3/2'" in failure(capsys, *command, "--shard", "3/2")
    assert "only --many" in failure(capsys, "detect", folder, "--shard", "1/2")
    for other in ('{"other": 1}\n', 10**5 * "[" + "\n"):
        path.write_text(other)
        assert "line 1: not a line of detections" in failure(capsys, *command)
        assert path.read_text() == other


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_the_file(monkeypatch):
    monkeypatch.setattr(bulk, "try_lock", lambda _: True)  # it is the whole machine's file
    with bulk.JsonLines(Path("/dev/full")) as rows, pytest.raises(OSError) as error:
        rows.add({"image": "a"})
    assert str(error.value) == "cannot write /dev/full: No space left on device"


def test_two_runs_do_not_write_the_same_lines(tmp_path):
    path = tmp_path / "detections.jsonl"
    with bulk.JsonLines(path) as rows:
        rows.add({"image": "a"})
        with pytest.raises(ValueError, match="detections.jsonl: another run works on the same"):
            bulk.JsonLines(path)
        rows.add({"image": "b"})
    with bulk.JsonLines(path) as rows:
        assert rows.known == {"a": False, "b": False}
    # Who refuses a file holds it no longer.
    path.write_text("other\n")
    with pytest.raises(ValueError, match="line 1: not a line of detections") as refused:
        bulk.JsonLines(path)
    path.write_text("")
    with bulk.JsonLines(path):
        assert refused


def test_an_image_that_torch_refuses_stops_no_run(trained, drawn, tmp_path, monkeypatch):
    """A backbone of one's own may have no cell for it; memory may be too small for it."""

    def detect(model, pixels, proposals, **detection):
        if pixels.shape[0] == 16:
            raise RuntimeError("Calculated padded input size per channel: (3 x 250)")
        return detect_image(model, pixels, proposals, **detection)

    monkeypatch.setattr(bulk, "detect_image", detect)
    for name, height in (("a", 120), ("b", 16), ("c", 120)):
        Image.new("RGB", (160, height)).save(tmp_path / f"{name}.png")
    images = [tmp_path / f"{name}.png" for name in "abc"]
    run_with_failures("detect", *images, "--many", "--checkpoint", trained, "--out", tmp_path / "o")
    rows = [json.loads(line) for line in (tmp_path / "o/detections.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"image", "detections"}, {"image", "error"},
                                          {"image", "detections"}]  # fmt: skip
    assert "3 x 250" in rows[1]["error"]


@pytest.mark.parametrize("by_turns", [True, False])
def test_only_some_images_are_made_and_not_taken(by_turns):
    made = []

    def make(number):
        made.append(number)
        return number

    for taken, (number, future) in enumerate(bulk._ahead(make, range(50), 2, by_turns=by_turns)):
        assert number == taken == future.result() and len(made) <= taken + 16
        assert not by_turns or len(made) in (16, 32, 48, 50)  # nothing is being made
    assert taken == 49
    made.clear()
    ahead = bulk._ahead(lambda _: time.sleep(0.05) or made.append(1), range(50), 1, by_turns=False)
    next(ahead)
    ahead.close()
    assert len(made) <= 2  # who stops waits for no more than what is under way


def test_a_part_is_whole_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    sizes, full = [], False

    def fsync(descriptor):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # not the folder
            sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with bulk.ParquetParts(tmp_path) as rows:
        rows.add({"image": "a", "detections": []})
    part = tmp_path / "part-00000.parquet"
    assert set(sizes) == {part.stat().st_size} and list(tmp_path.iterdir()) == [part]
    # Of two at work on the same part one is told, and what the other wrote stays.
    first, second = bulk.ParquetParts(tmp_path), bulk.ParquetParts(tmp_path)
    with first:
        first.add({"image": "b", "detections": []})
    with pytest.raises(FileExistsError, match="00001.parquet is there: another run"):
        with second:
            second.add({"image": "c", "detections": []})
    assert {row["image"] for row in rows_of(tmp_path)} == {"a", "b"}
    full = True
    with pytest.raises(OSError, match="cannot write .*part-00002.parquet: No space"):
        with bulk.ParquetParts(tmp_path) as rows:
            rows.add({"image": "d", "detections": []})
    assert len(list(tmp_path.iterdir())) == 2


def test_a_part_that_another_run_wrote_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    """Of a large part the wait for the disk is long."""
    pytest.importorskip("pyarrow")
    first, second = bulk.ParquetParts(tmp_path), bulk.ParquetParts(tmp_path)
    first.add({"image": "a", "detections": []})

    def waited(_):
        monkeypatch.undo()
        with second:
            second.add({"image": "b", "detections": []})

    monkeypatch.setattr(os, "fsync", waited)
    with pytest.raises(FileExistsError, match="00000.parquet is there: another run"), first:
        pass
    assert [row["image"] for row in rows_of(tmp_path)] == ["b"]


def test_a_part_that_the_system_does_not_read_is_no_part_of_another_kind(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "part-00000.parquet").symlink_to(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        bulk.ParquetParts(tmp_path)


def test_a_setting_that_is_no_more_makes_other_rows_too(tmp_path):
    path = tmp_path / "detections.jsonl"
    bulk.check_made_by(path, {"score": 0.5, "sieve": 3})
    path.write_text('{"image": "a"}\n')
    with pytest.raises(ValueError, match="another way .*: sieve was 3, is None; give another"):
        bulk.check_made_by(path, {"score": 0.5})
    # The first rows take their time: until then another start may not say what makes them.
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="other settings .*sieve was 3.* delete .*made-by.json if"):
        bulk.check_made_by(path, {"score": 0.5})
    bulk.check_made_by(path, {"score": 0.5, "sieve": 3})


def test_a_refused_run_does_not_say_what_made_the_rows_of_another(
    drawn, trained, tmp_path, capsys
):
    image = drawn / "JPEGImages" / "test_0000.jpg"
    command = ("detect", image, "--many", "--checkpoint", trained, "--out", tmp_path)
    with bulk.JsonLines(tmp_path / "detections.jsonl"):  # it has no row yet
        bulk.check_made_by(tmp_path / "detections.jsonl", {"by": "the first"})
        assert "another run works on the same" in failure(capsys, *command)
    assert "the first" in (tmp_path / "detections.jsonl.made-by.json").read_text()


@pytest.mark.parametrize("many", [(), ("--many",)], ids=["pictures", "many"])
def test_proposals_of_a_file_are_those_of_each_image(
    many, trained, drawn, tmp_path, capsys, monkeypatch
):
    """The boxes go by the image, not by the order, and no image is searched."""
    checkpoint = shutil.copy(trained / "checkpoint.pt", tmp_path)
    content = load_checkpoint(checkpoint)  # as of a training on proposals of others
    torch.save(content | {"proposals_made_with": None}, checkpoint)
    monkeypatch.setattr(Search, "boxes", lambda *_: pytest.fail("searched"))
    ids = {"photo.jpg": "photo", "a/photo.jpg": "a/photo", "a.b.jpg": "a.b", "7.jpg": "in/7",
           "val/000000000139.jpg": "val/139", "2014/COCO_val2014_000000042.jpg": "2014/42"}
    images = [tmp_path / "in" / name for name in ids]
    boxes = {i: np.float32([[n, 0, 60 + n, 50]]) for n, i in enumerate(ids.values())}
    own = list(boxes.values())
    for image in images:
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / "JPEGImages/test_0000.jpg", image)
    # The folder says more than the name alone, and a number alone says nothing.
    boxes |= dict.fromkeys(["7", "139", "other"], np.float32([[9, 9, 99, 99]]))
    proposals = tmp_path / "p.npz"
    write_proposals(proposals, boxes.items())
    used = []

    def noted(model, image, proposals, **options):
        used.append(proposals)
        return detect_image(model, image, proposals, **options)

    for place in (bulk, detection):
        monkeypatch.setattr(place, "detect_image", noted)
    command = ("detect", *images, "--checkpoint", checkpoint, "--out", tmp_path / "out", *many,
               "--proposals", proposals)  # fmt: skip
    run(*command)
    np.testing.assert_array_equal(used, own)
    if many:  # other boxes are another run
        write_proposals(proposals, (boxes | {"7": boxes["photo"]}).items())
        assert "proposals_crc32 was" in failure(capsys, *command)

    del boxes["photo"], boxes["val/139"]
    write_proposals(proposals, boxes.items())
    line = failure(capsys, *command)
    assert f"no proposals for 2 of 6 images: {images[0]}, {images[4]}; add boxes" in line
    assert "as 'a/photo' is, or leave these images out" in line
    write_proposals(proposals, [("photo", own[0])])
    line = failure(capsys, *command)
    assert f"'photo' may be {images[0]} or {images[1]}; name images by their folders too" in line
    line = failure(capsys, *command, "--mode", "fast")
    assert "give either --proposals or --mode" in line
    assert "no such proposal file" in failure(capsys, *command[:-1], tmp_path / "absent.npz")


def picture(path, size=(60, 40)):
    """An image that no other of another path is like, byte for byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([*os.fsencode(path)])
    Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
    return path


def proposals_of(images, everything, proposals, boxes, *of):
    """What `detect` proposes for the images, from a file with boxes of the images `of`."""
    known = {name: fingerprint(path) for name, path in zip(boxes, of, strict=False)}
    write_proposals(proposals, boxes.items(), fingerprints=known)
    propose = detection._proposals_of(images, everything, ProposalStore(proposals))
    return lambda image: propose(load_image(image), image).tolist()


ONE, TWO = np.float32([[0, 0, 9, 9]]), np.float32([[5, 5, 30, 30]])


def test_boxes_that_the_file_knows_to_be_of_another_image_are_not_used(trained, tmp_path, capsys):
    """The ids of COCO are those of its annotations, whatever the files are called."""
    proposals = tmp_path / "p.npz"
    names = {2: "frame_1.jpg", 1: "frame_2.jpg", 3: "dog3.jpg"}
    images = [{"id": number, "file_name": name} for number, name in names.items()]
    write_instances(tmp_path, "val", images, [], [{"id": 1, "name": "cat"}])
    files = [picture(tmp_path / "val" / name) for name in names.values()]
    records = load_coco(tmp_path, "val").records
    assert [record.image_id for record in records] == ["val/2", "val/1", "val/3"]
    compute_proposals(
        [(r.image_id, r.image_path) for r in records], proposals, Search(method="grid")
    )
    command = ("--checkpoint", trained, "--proposals", proposals, "--out", tmp_path / "out")
    run("detect", files[2], *command)  # its number is the id
    line = failure(capsys, "detect", files[0], *command)
    assert f"{files[0]}: the boxes of 'val/1' in {proposals} are of another image, or" in line
    run_with_failures("detect", *files, *command, "--many")
    rows = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert ["of another image" in json.loads(row).get("error", "") for row in rows] == [1, 1, 0]
    assert "3 done" in (text := capsys.readouterr().out) and "2 failed" in text

    # Of two images with one name the file may know which it is; a copy is as good.
    a, b = picture(tmp_path / "a/p.png"), picture(tmp_path / "b/p.png")
    copy = tmp_path / "c/p.png"
    copy.parent.mkdir()
    shutil.copy(b, copy)
    boxes_of = proposals_of([a, b, copy], [a, b, copy], proposals, {"a/p": ONE, "p": TWO}, b, b)
    assert boxes_of(b) == boxes_of(copy) == TWO.tolist()
    with pytest.raises(ValueError, match=f"{a}: the boxes of 'a/p' and 'p' in .* another image"):
        boxes_of(a)


def test_a_number_in_a_name_is_an_id_in_names_of_coco_or_by_the_checksum(tmp_path):
    proposals = tmp_path / "p.npz"
    dog, seven = picture(tmp_path / "in/dog7.png"), picture(tmp_path / "in/7.png")
    assert proposals_of([seven], [dog, seven], proposals, {"in/7": ONE})(seven) == ONE.tolist()
    with pytest.raises(ValueError, match=f"no proposals for 1 of 2 images: {dog}; add"):
        proposals_of([dog, seven], [dog, seven], proposals, {"in/7": ONE})
    assert proposals_of([dog], [dog], proposals, {"in/7": ONE}, dog)(dog) == ONE.tolist()
    with pytest.raises(ValueError, match=f"{seven}: the boxes of 'in/7' in .* another image"):
        proposals_of([seven], [seven], proposals, {"in/7": ONE}, dog)(seven)


def test_boxes_outside_of_the_pixels_are_refused_with_image_and_size(tmp_path):
    image, proposals = picture(tmp_path / "a.png", (60, 40)), tmp_path / "p.npz"
    good = [[0, 0, 59, 39], [5, 5, 59.25, 39.25]]  # fractions that rounding left
    assert proposals_of([image], [image], proposals, {"a": np.float32(good)})(image) == good
    for outside in ([0, 0, 60, 39], [0, 0, 59, 40], [-1, 0, 50, 30]):
        boxes = np.float32([*good, outside])
        with pytest.raises(ValueError) as error:
            proposals_of([image], [image], proposals, {"a": boxes})(image)
        assert str(error.value).startswith(
            f"{image}: proposals of 'a' in {proposals}, row 2: expected x1 y1 x2 y2 inside of "
            f"60 x 40 pixels, got {[float(x) for x in outside]}; they are of another"
        )


def test_boxes_of_other_parts_of_the_job_stop_no_part(trained, tmp_path, capsys):
    images = [picture(tmp_path / f"{name}.png") for name in "abc"]
    bad = ONE * np.nan
    proposals = tmp_path / "p.npz"
    np.savez(proposals, a=ONE, b=bad)  # and c has none
    command = ("detect", *images, "--many", "--checkpoint", trained, "--proposals", proposals)
    run(*command, "--out", tmp_path / "out", "--shard", "1/3")
    assert "1 done" in (text := capsys.readouterr().out) and "0 failed" in text
    run_with_failures(*command, "--out", tmp_path / "out", "--shard", "2/3")
    row = json.loads((tmp_path / "out" / "detections.2-of-3.jsonl").read_text())
    assert "proposals of image 'b', row 0: expected finite" in row["error"]
    line = failure(capsys, *command, "--out", tmp_path / "out", "--shard", "3/3")
    assert f"no proposals for 1 of 1 images: {images[2]}; add" in line
    # What an image of another part may have as well is nobody's.
    twin = picture(tmp_path / "twin/a.png")
    with pytest.raises(ValueError, match=f"'a' may be {images[0]} or {twin}"):
        proposals_of(images[:1], [images[0], twin], proposals, {"a": ONE})


def test_a_folder_is_its_images_by_name_and_one_without_any_is_named(trained, tmp_path, capsys):
    line = failure(capsys, "detect", tmp_path, "--checkpoint", trained)
    assert f"{tmp_path}: no image in this folder (.jpg, " in line
    assert "name at least one image" in failure(capsys, "detect", "--checkpoint", trained)
    names = ["a-detections.jpg", "b.JPG", "c.png"]  # the first is no drawing, and no image
    for name in (*names[::-1], "notes.txt"):
        (tmp_path / name).write_text("no image")
    assert [path.name for path in expand_folders([tmp_path], lists=True)] == names
    notes = tmp_path / "notes.txt"  # is a list where lists are asked for alone
    assert expand_folders([notes]) == [notes]
    assert expand_folders([notes], lists=True) == [Path("no image")]


def test_images_in_subfolders_are_told(trained, drawn, tmp_path, capsys):
    inside = tmp_path / "photos" / "a folder"
    inside.mkdir(parents=True)
    shutil.copy(next((drawn / "JPEGImages").glob("test*.jpg")), inside / "one.jpg")
    (tmp_path / "photos" / "empty").mkdir()
    (tmp_path / "photos" / "gone").symlink_to(tmp_path / "absent")
    command = ("--checkpoint", trained, "--out", tmp_path / "out", "--many")
    assert f"there are some in {inside}" in failure(capsys, "detect", inside.parent, *command)
    shutil.copy(inside / "one.jpg", inside.parent)
    run("detect", inside.parent, *command)
    text = capsys.readouterr().out
    assert f"not looked at: {inside} (1 image)" in text and "empty" not in text
    run("detect", inside.parent, inside, *command)
    assert "not looked at" not in capsys.readouterr().out


def test_lists_of_images_are_read_like_splits(drawn, trained, tmp_path, capsys):
    images, listed = sorted((drawn / "JPEGImages").glob("test*.jpg")), tmp_path / "list.txt"
    text = "".join(f"  {path}\t\r\n\r\n" for path in images)
    listed.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert expand_folders([listed], lists=True) == images
    listed.write_text(text, encoding="utf-16")
    line = failure(capsys, "detect", listed, "--many", "--checkpoint", trained)
    assert "list.txt: not readable as UTF-8" in line and "save it as UTF-8" in line


def rows_of(folder):
    """The rows of all parts as the lines of JSON have them, by image."""
    import pyarrow.dataset

    rows = pyarrow.dataset.dataset(folder).to_table().to_pylist()
    plain = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert len({row["image"] for row in plain}) == len(plain)
    return sorted(plain, key=lambda row: row["image"])


def test_many_images_in_parquet_are_the_lines_and_a_killed_run_goes_on(
    trained, drawn, tmp_path, capsys, monkeypatch
):
    import pyarrow.parquet

    folder, bad, out = drawn / "JPEGImages", tmp_path / "bad.jpg", tmp_path / "out"
    bad.write_text("no image")
    command = ("detect", folder, bad, "--many", "--checkpoint", trained,
               "--score-threshold", 0, "--out", out)  # fmt: skip
    run_with_failures(*command)
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["image"])
    assert len(lines) == 7 and any(line.get("detections") for line in lines)

    parquet = (*command, "--format", "parquet")
    killed = (
        "import os, sys\nfrom fastrcnn_engine import cli\n"
        "from fastrcnn_engine.commands import bulk\n"
        "bulk.PART_IMAGES = 2\n"
        "def dies(*_, calls=[], detect=bulk.detect_image, **options):\n"
        "    calls.append(1)\n"
        "    return detect(*_, **options) if len(calls) < 4 else os._exit(9)\n"
        "bulk.detect_image = dies; cli.main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", killed, *map(str, parquet)])
    assert done.returncode == 9
    parts = out / "detections"
    assert [path.name for path in parts.iterdir()] == ["part-00000.parquet"]
    (parts / ".part-00001.parquet.tmp").write_text("cut o")
    before = (parts / "part-00000.parquet").read_bytes()
    monkeypatch.setattr(bulk, "PART_IMAGES", 2)
    run_stopped(4, monkeypatch, *parquet)
    assert len(rows_of(parts)) == 5  # what was detected before Ctrl-C is there, part or no part
    capsys.readouterr()
    run_with_failures(*parquet)
    text = " ".join(capsys.readouterr().out.split())
    assert "images: 2 done" in text and "5 done before, 1 failed" in text
    assert (parts / "part-00000.parquet").read_bytes() == before
    assert rows_of(parts) == lines
    run_with_failures(*parquet)
    assert len(list(parts.glob("*.parquet"))) == 4, "nothing was left to write"

    shards = (*command[:-1], tmp_path / "shared", "--format", "parquet", "--shard")
    monkeypatch.setattr(bulk, "PART_SECONDS", -1)  # each row is late
    run_with_failures(*shards, "1/2")
    for _ in range(2):
        run(*shards, "2/2")
    assert rows_of(tmp_path / "shared" / "detections") == lines
    names = {path.name for path in (tmp_path / "shared" / "detections").iterdir()}
    assert len(names) == 7 and {"part-00003.1-of-2.parquet", "part-00002.2-of-2.parquet"} <= names

    # However a job is cut: what one part has detected no other does again.
    capsys.readouterr()
    run_with_failures(*command[:-1], tmp_path / "shared", "--format", "parquet")
    run(*shards, "2/3")
    assert capsys.readouterr().out.count("images: 0 done") == 2
    assert rows_of(tmp_path / "shared" / "detections") == lines

    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))  # no UTF-8
    strange.write_bytes((folder / "test_0000.jpg").read_bytes())
    for _ in range(2):
        run("detect", strange, "--many", "--checkpoint", trained, "--out", tmp_path / "strange",
            "--format", "parquet")  # fmt: skip
    (row,) = rows_of(tmp_path / "strange" / "detections")
    assert row["image"].endswith("/\\udcff.jpg")

    part = parts / "part-00002.parquet"
    whole = part.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    for other in (b"other", whole[: -8 - footer] + b"\xff" * footer + whole[-8:]):
        part.write_bytes(other)
        assert "part-00002.parquet: not a part of detections" in failure(capsys, *parquet)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), parts / "part-00002.parquet")
    assert "(columns of another kind); give another" in failure(capsys, *parquet)
    assert "only --many writes it" in failure(capsys, "detect", bad, "--format", "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow: pip install pyarrow" in failure(capsys, *parquet)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_of_another_checkpoint_score_size_or_search_are_not_taken_for_this_run_s(
    trained, drawn, tmp_path, capsys, kind
):
    other = tmp_path / "other.pt"
    content = load_checkpoint(trained / "checkpoint.pt")
    content["model"]["cls_score.bias"] += 1
    torch.save(content, other)
    image, out = drawn / "JPEGImages/test_0000.jpg", tmp_path / "out"
    find = ("detect", image, "--many", "--out", out, "--format", kind, "--checkpoint")
    command = (*find, trained, "--score-threshold", "0.03")
    run(*command, "--shard", "2/2")  # has no image: another start of the job changes nothing
    run(*command, "--shard", "1/2")
    note = out / ("detections.jsonl.made-by.json" if kind == "jsonl" else "detections.made-by.json")
    kept = json.loads(note.read_text())
    assert kept["score_threshold"] == 0.03 and kept["search"]["short_side"] == 80
    whole = zlib.crc32((trained / "checkpoint.pt").read_bytes())
    assert kept["checkpoint_crc32"] == f"{whole:08x}" and kept["max_side"] == 800
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for changed, says in (
        ((*find, other, "--score-threshold", "0.03"), "checkpoint_crc32 was"),
        ((*find, trained,
          "--score-threshold", "0.5"), "score_threshold was 0.03, is 0.5; give another"),
        ((*command, "--short-side", 96), "short_side was 120, is 96"),
        ((*command, "--mode", "fast"), "search was"),
        ((*command,
          "--score-threshold", "0.5", "--shard", "2/2"), "score_threshold was 0.03, is 0.5"),
    ):
        line = failure(capsys, *changed)
        assert says in line and note.name in line
    assert all(path.read_bytes() == content for path, content in before.items())
    copy = tmp_path / "elsewhere.pt"  # the same checkpoint
    copy.write_bytes((trained / "checkpoint.pt").read_bytes())
    shutil.copy(trained / "proposals.npz", tmp_path)
    run(*find, copy, "--score-threshold", "0.03", "--shard", "1/2")
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done, 1 done before" in text

    note.unlink()  # then they may be of anything
    line = failure(capsys, *command[:-1], "0.5", "--shard", "1/2")
    assert f"has rows, and {note.name}, which says what made them, is not there" in line
