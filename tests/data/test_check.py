"""check_dataset goes on after a fault and finds all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrcnn_engine import cli
from fastrcnn_engine.data.check import (
    BAD_PROPOSALS,
    DARK,
    ERRORS,
    NO_OBJECTS,
    NOTHING,
    OUTDATED,
    OUTSIDE,
    REPAIRED,
    SWAPPED,
    TWICE,
    UNUSABLE,
    WARNINGS,
    DataCheck,
    check_dataset,
)
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    compute_proposals,
    write_proposals,
)
from fastrcnn_engine.data.records import Dataset, record_of

from .coco_files import annotation, write_instances, write_picture
from .voc_files import object_xml, write_annotation, write_image, write_split

GOOD = object_xml("dog", (1, 1, 20, 20))


@pytest.fixture
def voc(tmp_path):
    """Two good images and one of every fault."""
    root = tmp_path / "voc"
    images = {
        "good": [GOOD, object_xml("cat", (5, 5, 12, 28), difficult=1)],
        "empty": [],
        "twice": [GOOD, object_xml("cat"), GOOD],
        "boxes": [object_xml("dog", (3, 3, 3, 9)), object_xml("dog", (1, 1, 99, 9))],
        "size": [GOOD],
        "nameless": [object_xml("", (1, 1, 9, 9)), GOOD],
        "truncated": [GOOD],
        "turned": [GOOD],
    }
    for name, objects in images.items():
        write_image(root, name)
        write_annotation(root, name, objects, size=(41, 30) if name == "size" else (40, 30))
    path = root / "JPEGImages" / "truncated.jpg"
    path.write_bytes(path.read_bytes()[:700])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "white").save(root / "JPEGImages" / "turned.jpg", exif=exif)
    write_annotation(root, "pictureless", [GOOD])
    write_annotation(root, "text", [GOOD])
    (root / "JPEGImages" / "text.jpg").write_text("hello")
    write_image(root, "broken")
    (root / "Annotations" / "broken.xml").write_text("<annotation>")
    names = [*images, "pictureless", "text", "broken", "good", "two words", "absent"]
    write_split(root, "train", names)
    return root


def about(lines, *words):
    """Whether there is a line for each of the words, and no other."""
    return len(lines) == len(words) and all(any(w in line for line in lines) for w in words)


def test_all_faults_of_a_voc_set_are_found(voc, tmp_path):
    boxes = {name: np.float32([[0, 0, 19, 19]]) for name in ("good", "twice", "boxes", "size")}
    boxes |= {"empty": np.zeros((0, 4), np.float32), "truncated": boxes["good"]}
    write_proposals(tmp_path / "p.npz", boxes.items())
    check = check_dataset(voc, "train", proposals=tmp_path / "p.npz", progress=False)
    unusable, undecodable, unproposed, *others = (check.errors[kind] for kind in ERRORS)
    assert others == [[], []]
    assert about(
        unusable, "broken.xml: not readable as XML", "nameless.xml, object 1: has no name",
        "line 9: no image JPEGImages/pictureless.{jpg,jpeg,png,bmp,tif,tiff,webp}",
        "text.jpg: not readable", "'good' stands already",
        "expected one image id, got 'two words'", "absent.xml: no such file",
    )  # fmt: skip
    assert about(undecodable, "truncated.jpg: not readable")
    assert sorted(unproposed) == ["nameless", "turned"]
    dropped, turned, twice, empty, none, *others = (check.warnings[kind] for kind in WARNINGS)
    assert others == [[], [], [], []]
    assert about(dropped, "boxes.xml, object 1 (dog): dropped", "object 2 (dog): clipped",
                 "states size 41x30")  # fmt: skip
    assert about(turned, "turned.jpg: orientation 6")
    assert twice == ["twice: dog at 0 0 19 19"]
    assert empty == ["empty"] and none == ["empty"]
    assert not check.is_usable
    facts = {one["class"]: one for one in check.to_dict()["classes"]}
    assert facts["dog"]["objects"] == 8 and facts["dog"]["images"] == 7
    assert facts["cat"]["size_quantiles"][1] == pytest.approx((np.sqrt(8 * 24) + 10) / 2)
    # good's cat is difficult and not counted, twice's has an IoU of a quarter.
    assert facts["cat"]["recall"] == {"0.5": 0.0, "0.7": 0.0}
    assert facts["dog"]["recall"]["0.5"] == pytest.approx(5 / 6)  # all but the clipped one
    # What a training meets first is one of them.
    with pytest.raises((OSError, ValueError)) as error:
        load_dataset(voc, "train")
    assert str(error.value) in unusable


def test_proposals_that_do_not_fit_their_images_are_told(voc, tmp_path):
    write_split(voc, "some", ["good", "twice", "size"])
    good = np.float32([[0, 0, 19, 19], [30, 20, 39, 29]])  # to the last pixel of 40 x 30

    def checked(**boxes):
        np.savez(tmp_path / "p.npz", **dict.fromkeys(("good", "twice", "size"), good) | boxes)
        return check_dataset(
            voc, "some", ("dog", "cat"), proposals=tmp_path / "p.npz", progress=False
        )

    wide, x_y_w_h = good + np.float32([0, 0, 1, 0]), np.float32([[30, 20, 10, 10], [3, 4, 5, 6]])
    check = checked(good=wide, twice=1000 * good, size=x_y_w_h)
    assert check.is_usable and check.recall is not None
    outside, swapped = (check.warnings[kind] for kind in (OUTSIDE, SWAPPED))
    assert about(outside, "good (40x30): 1 of 2, row 1 is [30.0, 20.0, 40.0, 29.0]",
                 "twice (40x30): 2 of 2, row 0")  # fmt: skip
    assert about(swapped, "size (40x30): 1 of 2, row 0 is [30.0, 20.0, 10.0, 10.0]")
    assert checked(good=good + np.float32([0, 0, 0.5, 0])).warnings[OUTSIDE] == []  # of rounding
    check = checked(twice=good - np.float32([0, 0.5, 0, 0]))
    assert about(check.warnings[OUTSIDE], "twice (40x30): 1 of 2, row 0")
    # A training would stop at the first of these.
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 2] = value
        check = checked(twice=bad, size=bad)
        assert about(check.errors[BAD_PROPOSALS],
                     "p.npz: proposals of image 'twice', row 1: expected",
                     "image 'size', row 1: expected finite x1 y1 x2 y2, got")  # fmt: skip
        assert not check.is_usable and check.recall["images"] == 1


def test_an_image_that_has_changed_since_its_search_is_told(voc, tmp_path):
    write_split(voc, "some", ["good", "twice"])
    images = [(name, voc / "JPEGImages" / f"{name}.jpg") for name in ("good", "twice")]
    path = tmp_path / "p.npz"
    compute_proposals(images, path, Search(method="grid"), progress=False)

    def changed():
        check = check_dataset(voc, "some", proposals=path, progress=False)
        return check.warnings[OUTDATED]

    assert changed() == []
    write_image(voc, "twice", size=(30, 40))
    assert changed() == ["twice"]
    # Where nothing tells of which image they are, nobody reads it; nor one that cannot be read.
    write_proposals(path, [(name, np.zeros((0, 4))) for name, _ in images])
    assert ProposalStore(path).is_of("good", tmp_path / "nowhere.jpg") and changed() == []
    images[1][1].write_bytes(images[1][1].read_bytes()[:700])  # its size is there
    path.unlink()
    compute_proposals(images, path, Search(method="grid"), progress=False, errors=[])
    assert changed() == []


def test_broken_exif_is_no_fault_of_the_image(tmp_path, capsys):
    write_image(tmp_path, "a", suffix=".webp")
    path = tmp_path / "JPEGImages" / "a.webp"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif)
    path.write_bytes(path.read_bytes().replace(b"MM\0*", b"MM\0?").replace(b"II*\0", b"II?\0"))
    write_annotation(tmp_path, "a", [object_xml()])
    write_split(tmp_path, "train", ["a"])
    check = check_dataset(tmp_path, "train", progress=False)
    assert check.is_usable and not any(check.warnings.values())
    assert capsys.readouterr().out == ""  # no live line was asked for


def test_images_that_are_nearly_black_are_told(tmp_path):
    pixels = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    for name, brightest in (("twelve", 4095), ("brighter", 4096), ("sixteen", 65535)):
        write_annotation(tmp_path, name, [GOOD])
        (tmp_path / "JPEGImages").mkdir(exist_ok=True)
        picture = Image.fromarray((pixels / 1199 * brightest).astype(np.uint16))
        picture.save(tmp_path / "JPEGImages" / f"{name}.png")
    write_split(tmp_path, "train", ["twelve", "brighter", "sixteen"])
    check = check_dataset(tmp_path, "train", progress=False)
    assert about(check.warnings[DARK], "twelve.png") and check.is_usable


def test_quantiles_of_sizes_are_those_of_the_table():
    boxes = [(0, 0, last, last) for last in range(21)]  # sides of 1 to 21
    record = record_of("a", Path("a.png"), (40, 30), boxes, [1] * 21, [False] * 21)
    check = DataCheck(Dataset(("dog",), [record], [], Path("set"), "train"), {}, {}, None)
    assert check.to_dict()["classes"][0]["size_quantiles"] == pytest.approx([2, 11, 20])


def test_a_split_without_any_object_cannot_be_trained_on(voc):
    write_split(voc, "bare", ["empty"])
    check = check_dataset(voc, "bare", ("dog", "cat"), progress=False)
    assert not check.is_usable
    assert sum(check.errors.values(), []) == [
        "none of the images of bare has an object to train on"
    ]
    write_split(voc, "bad", ["absent"])  # that there is no image is told already
    check = check_dataset(voc, "bad", ("dog", "cat"), progress=False)
    assert not check.is_usable and check.errors[NOTHING] == []


def test_an_unknown_class_and_a_bad_flag_are_told_with_their_objects(voc):
    objects = [object_xml("dog", difficult=2), object_xml("bird"), GOOD]
    write_annotation(voc, "good", objects)
    write_split(voc, "one", ["good"])
    check = check_dataset(voc, "one", ("dog", "cat"), progress=False)
    assert about(check.errors[UNUSABLE], "object 1 (dog): difficult must be 0 or 1, got '2'",
                 "object 2: class 'bird' is not one of dog, cat")  # fmt: skip
    assert len(check.dataset.records[0].boxes) == 1
    write_annotation(voc, "good", [GOOD, object_xml("cat", (1, 1, 20, 20))])  # are two objects
    check = check_dataset(voc, "one", ("dog", "cat"), progress=False)
    assert check.warnings[TWICE] == []


def test_a_coco_set_is_checked_too(tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path, "train", name)
    (tmp_path / "train" / "c.png").write_text("no image")
    write_instances(
        tmp_path, "train",
        [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate("abcd")],
        [annotation(1, 0, 5, [0, 0, 10, 10]), annotation(2, 0, 5, [0, 0, 10, 10]),
         annotation(3, 1, 6, [0, 0, 10, 10])],
        [{"id": 5, "name": "dog"}],
    )  # fmt: skip
    check = check_dataset(tmp_path, "train", progress=False)
    assert about(check.errors[UNUSABLE], "c.png: not readable")
    assert about(check.warnings[REPAIRED], "id 3: dropped, its category_id, 6", "no file")
    assert check.warnings[TWICE] == ["train/0: dog at 0 0 9 9"]
    assert check.warnings[NO_OBJECTS] == ["train/1"]
    write_instances(
        tmp_path, "train", [{"id": 0, "file_name": "a.png"}],
        [annotation(1, 0, 5, [0, 0, 10, 10], iscrowd=1)], [{"id": 5, "name": "dog"}],
    )  # fmt: skip
    check = check_dataset(tmp_path, "train", progress=False)
    assert about(check.errors[NOTHING], "none of the images of train has an object to train")


def test_the_command_lists_everything_and_its_exit_code_says_whether_to_train(
    voc, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "150")
    out = tmp_path / "out"
    command = ["check-data", "--data", str(voc), "--out", str(out), "--split"]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "train"])
    assert end.value.code == 1
    text = capsys.readouterr().out
    assert "errors: 8," in text and "truncated.jpg: not readable" in text and "absent.xml" in text
    content = json.loads((out / "check.json").read_text())
    dog = next(one for one in content["classes"] if one["class"] == "dog")
    sizes = " │ ".join(f"{size:.0f}" for size in dog["size_quantiles"])
    table = " ".join(text.split())
    assert "class ┃ objects ┃ images ┃ size, 5 % ┃ median ┃ 95 %" in table
    assert f"dog │ 8 │ 7 │ {sizes} │" in table and len(set(sizes.split())) > 2
    assert " 8/8 " in table and "images read: 8, objects: 10, errors: 8, warnings: 6;" in table
    assert sum(map(len, content["errors"].values())) == 8
    assert Image.open(out / "samples.jpg").width == 3 * 420 + 2 * 8
    assert "objects" in (out / "sizes.svg").read_text()
    write_split(voc, "fine", ["good", "empty"])
    # Warnings alone; classes are named, so the annotations of other splits are not read.
    given = ("--classes", "dog", "cat", "--proposals", str(tmp_path / "p.npz"))
    write_proposals(tmp_path / "p.npz", dict.fromkeys(("good", "empty"), [[0, 0, 19, 17]]).items())
    cli.main([*command, "fine", *given])
    text = " ".join(capsys.readouterr().out.split())
    assert "errors: 0, warnings: 1;" in text and "┃ recall at IoU 0.5 ┃ recall at IoU 0.7 ┃" in text
    assert "dog │ 1 │ 1 │ 20 │ 20 │ 20 │ 1.000 │ 1.000 │ │ cat │ 1 │ 1 │ 14 │" in text
    assert "│ n/a │ n/a │" in text  # of difficult ones alone
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "nothing"])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.endswith("splits found beside it: fine, train; give one of them by --split\n")
