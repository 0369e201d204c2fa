from __future__ import annotations

import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from fastrcnn_engine.data.voc import load_voc

from .voc_files import BCCD, object_xml, write_annotation, write_image, write_split

needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD images are not on this machine")


@pytest.fixture
def root(tmp_path):
    """Two images: `a` with a dog and a difficult cat, `b` with nothing; split `train`."""
    write_image(tmp_path, "a")
    write_image(tmp_path, "b")
    write_annotation(
        tmp_path,
        "a",
        [object_xml("dog", (1, 2, 11, 22)), object_xml("cat", (5, 5, 40, 30), difficult=1)],
    )
    write_annotation(tmp_path, "b")
    write_split(tmp_path, "train", ["b", "a"])
    return tmp_path


def test_reads_boxes_labels_and_difficult_in_the_order_of_the_split(root):
    dataset = load_voc(root, "train")
    assert dataset.classes == ("cat", "dog")
    assert [record.image_id for record in dataset.records] == ["b", "a"]
    empty, full = dataset.records
    assert empty.boxes.shape == (0, 4) and empty.boxes.dtype == np.float32
    assert empty.labels.shape == (0,) and empty.difficult.shape == (0,)
    assert full.boxes.dtype == np.float32 and full.labels.dtype == np.int64
    assert full.boxes.tolist() == [[0, 1, 10, 21], [4, 4, 39, 29]]
    assert full.labels.tolist() == [2, 1]
    assert full.difficult.tolist() == [False, True]
    assert (full.width, full.height) == (40, 30)
    assert full.image_path == root / "JPEGImages" / "a.jpg"
    assert dataset.problems == []


def test_classes_are_inferred_from_all_annotations_not_from_the_split(root):
    write_annotation(root, "not_in_any_split", [object_xml("bird")])
    assert load_voc(root, "train").classes == ("bird", "cat", "dog")


def test_given_classes_set_the_order_of_the_labels(root):
    dataset = load_voc(root, "train", classes=["dog", "zebra", "cat"])
    assert dataset.classes == ("dog", "zebra", "cat")
    assert dataset.records[1].labels.tolist() == [1, 3]


def test_a_class_that_is_not_among_the_given_ones_is_an_error_naming_file_and_object(root):
    with pytest.raises(ValueError, match=r"a\.xml, object 2: class 'cat'.*dog"):
        load_voc(root, "train", classes=["dog"])


@pytest.mark.parametrize("classes", [[], ["dog", "dog"], "dog"])
def test_bad_class_lists_are_refused(root, classes):
    with pytest.raises(ValueError, match="classes"):
        load_voc(root, "train", classes=classes)


@pytest.mark.parametrize(
    "box, why",
    [
        ((7, 5, 7, 9), "no width"),
        ((7, 9, 9, 9), "no height"),
        ((9, 5, 7, 9), "no width"),
        (("nan", 5, 7, 9), "no number"),
        (("inf", 5, 7, 9), "no number"),
        (("seven", 5, 7, 9), "no number"),
        (("", 5, 7, 9), "no number"),
        ((41, 5, 60, 9), "outside"),
        ((40, 5, 60, 9), "outside"),  # only one column of pixels left: no width
        ((-9, 5, 0, 9), "outside"),
        ((5, 31, 9, 50), "outside"),
    ],
)
def test_a_box_that_cannot_be_used_is_dropped_and_reported(root, box, why):
    write_annotation(root, "a", [object_xml("cat"), object_xml("dog", box)])
    dataset = load_voc(root, "train")
    assert dataset.records[1].labels.tolist() == [1]
    assert dataset.classes == ("cat", "dog")
    (problem,) = dataset.problems
    assert "a.xml, object 2 (dog): dropped" in problem and why in problem


@pytest.mark.parametrize(
    "box, expected",
    [
        ((0, 0, 10, 10), [0, 0, 9, 9]),
        ((5, 5, 41, 35), [4, 4, 39, 29]),
    ],
)
def test_a_box_partly_outside_is_clipped_and_reported(root, box, expected):
    write_annotation(root, "a", [object_xml("dog", box)])
    dataset = load_voc(root, "train")
    assert dataset.records[1].boxes.tolist() == [expected]
    (problem,) = dataset.problems
    assert "a.xml, object 1 (dog): clipped" in problem


def test_the_last_pixel_is_inside(root):
    write_annotation(root, "a", [object_xml("dog", (1, 1, 40, 30))])
    dataset = load_voc(root, "train")
    assert dataset.records[1].boxes.tolist() == [[0, 0, 39, 29]]
    assert dataset.problems == []


def test_the_size_of_the_image_rules_over_the_stated_one(root):
    write_annotation(root, "a", [object_xml("dog", (1, 1, 60, 20))], size=(80, 60))
    dataset = load_voc(root, "train")
    assert (dataset.records[1].width, dataset.records[1].height) == (40, 30)
    assert dataset.records[1].boxes.tolist() == [[0, 0, 39, 19]]
    assert "80x60" in dataset.problems[0] and "clipped" in dataset.problems[1]


def test_a_missing_size_is_taken_from_the_image(root):
    write_annotation(root, "a", [object_xml("dog")], size=None)
    dataset = load_voc(root, "train")
    assert (dataset.records[1].width, dataset.records[1].height) == (40, 30)
    assert dataset.problems == []


def test_parts_of_an_object_are_not_objects(root):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write_annotation(
        root, "a", [object_xml("dog", (2, 2, 9, 9)).replace("</object>", f"{part}</object>")]
    )
    dataset = load_voc(root, "train")
    assert dataset.classes == ("dog",)
    assert dataset.records[1].boxes.tolist() == [[1, 1, 8, 8]]


def test_the_image_is_found_by_id_whatever_the_suffix_then_by_filename(root):
    write_image(root, "c", suffix=".PNG")
    write_image(root, "photo 7", suffix=".png")
    write_annotation(root, "c", filename="a.jpg")  # stale name, as annotation tools leave it
    write_annotation(root, "d", filename="photo 7.png")
    for folder, number in (("D:\\photos\\", 8), ("photos/", 9)):  # where they once were
        write_image(root, f"photo {number}", suffix=".png")
        write_annotation(root, f"e{number}", filename=f"{folder}photo {number}.png")
    write_split(root, "train", ["c", "d", "e8", "e9"])
    names = [record.image_path.name for record in load_voc(root, "train").records]
    assert names == ["c.PNG", "photo 7.png", "photo 8.png", "photo 9.png"]


def test_images_may_lie_in_subfolders(root):
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "sub" / "deep").mkdir(parents=True)
    write_image(root, "sub/a", suffix=".png")
    write_annotation(root, "sub/a", [object_xml("emu")])
    write_image(root, "sub/deep/photo 7")
    write_annotation(root, "sub/deep/c", [object_xml("owl")], filename="photo 7.jpg")
    (root / "Annotations" / ".old").mkdir()
    write_annotation(root, ".old/a", [object_xml("rat")])
    write_split(root, "train", ["a", "sub/a", "sub/deep/c"])
    dataset = load_voc(root, "train")
    assert dataset.classes == ("cat", "dog", "emu", "owl") and dataset.missing == ()
    assert [r.image_id for r in dataset.records] == ["a", "sub/a", "sub/deep/c"]
    assert [r.image_path.relative_to(root / "JPEGImages").as_posix() for r in dataset.records] == [
        "a.jpg", "sub/a.png", "sub/deep/photo 7.jpg"
    ]  # fmt: skip
    assert dataset.records[1].labels.tolist() == [3]
    assert load_voc(root, "train", ["cat", "dog", "emu", "owl"]).problems == []
    shutil.rmtree(root / "JPEGImages" / "sub")
    with pytest.raises(FileNotFoundError, match=r"line 2: no image JPEGImages/sub/a\.\{jpg,"):
        load_voc(root, "train")
    assert len(load_voc(root, "train", stated_sizes=True).missing) == 2


@pytest.mark.parametrize("suffix", [".TIF", ".tiff", ".webp", ".BMP"])
def test_every_kind_of_picture_is_found_by_id(root, suffix):
    write_image(root, "c", suffix=suffix)
    write_annotation(root, "c", filename="another name.jpg")
    write_split(root, "train", ["c"])
    assert load_voc(root, "train").records[0].image_path.name == f"c{suffix}"


@pytest.mark.parametrize(
    "filename, used", [("a.JPG", "a.JPG"), ("b.png", "a.png"), (None, "a.png")]
)
def test_of_several_images_of_an_id_one_is_used_and_told(tmp_path, filename, used):
    write_image(tmp_path, "a", suffix=".JPG")
    write_image(tmp_path, "a", suffix=".png")  # a mask, say
    write_annotation(tmp_path, "a", [object_xml()], filename=filename)
    write_split(tmp_path, "train", ["a"])
    dataset = load_voc(tmp_path, "train")
    assert dataset.records[0].image_path.name == used
    (problem,) = dataset.problems
    assert problem.endswith(f"a.png, a.JPG are of one id, 'a'; {used} is used")


def test_blank_lines_in_a_split_are_nothing(root):
    (root / "ImageSets/Main/train.txt").write_text("a\n\n  \nb\n")
    assert len(load_voc(root, "train").records) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\nb\na\n", r"train\.txt, line 3.*'a'.*line 1"),
        ("a  1\nb -1\n", r"train\.txt, line 1.*single classes"),
        ("a\nphoto 1\n", r"line 2: .*got 'photo 1'; an id has no spaces: rename"),
        ("\n", "names no image"),
    ],
)
def test_bad_split_files_are_refused(root, text, message):
    (root / "ImageSets/Main/train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_voc(root, "train")


def test_a_split_may_begin_as_windows_editors_begin_it(root):
    path = root / "ImageSets" / "Main" / "train.txt"
    before = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + before.replace("\n", " \r\n").encode())
    assert [r.image_id for r in load_voc(root, "train").records] == before.split()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_split_of_another_encoding_is_named(root, encoding):
    (root / "ImageSets" / "Main" / "bad.txt").write_text("straße\n", encoding=encoding)
    with pytest.raises(ValueError, match=r"bad\.txt: .*; save it as UTF-8"):
        load_voc(root, "bad")


def test_a_missing_split_names_the_splits_there_are(root):
    write_split(root, "val", ["a"])
    with pytest.raises(FileNotFoundError, match=r"test\.txt.*train, val; give one of .* by split$"):
        load_voc(root, "test")


def test_missing_files_are_named(root):
    (root / "JPEGImages/a.jpg").unlink()
    listed = root / "ImageSets/Main/train.txt"
    fact = f"{listed}, line 2: no image JPEGImages/a.{{jpg,jpeg,png,bmp,tif,tiff,webp}}"
    skip = "; a training on this split goes on without it if on_bad_image is skip"

    def told() -> str:
        with pytest.raises(FileNotFoundError) as error:
            load_voc(root, "train", ["cat", "dog"])
        return str(error.value)

    assert told() == f"{fact}; take the id out of the list{skip}"
    assert len(load_voc(root, "train", stated_sizes=True).missing) == 1  # as such a training reads
    write_annotation(root, "a", size=None, filename="photo.jpg")
    fact += ", nor photo.jpg, which its annotation names"
    assert told() == f"{fact}; take the id out of the list"  # it cannot be skipped
    errors = []
    load_voc(root, "train", ["cat", "dog"], errors=errors)
    assert errors == [fact]
    (root / "Annotations/b.xml").unlink()
    assert re.search(rf"b\.xml: no such file; .*: write it, or take .* out of {listed}$", told())
    shutil.rmtree(root / "Annotations")
    with pytest.raises(FileNotFoundError, match="Annotations: no such folder; a VOC data set has"):
        load_voc(root, "train", ["dog"])


@pytest.mark.parametrize("classes", [None, ("dog",)])
def test_without_annotations_there_are_images_if_asked_for(root, classes):
    annotated = load_voc(root, "train", needs_annotations=False)
    assert annotated.classes == ("cat", "dog") and len(annotated.records[1].boxes) == 2
    shutil.rmtree(root / "Annotations")
    dataset = load_voc(root, "train", classes, needs_annotations=False)
    assert [(r.image_id, r.width, len(r.boxes)) for r in dataset.records] == [
        ("b", 40, 0), ("a", 40, 0)
    ]  # fmt: skip
    assert dataset.classes == (classes or ()) and "no image of train has" in dataset.problems[0]


@pytest.mark.parametrize(("size", "usable"), [((40, 30), True), (None, False), ((0, 30), False)])
def test_an_image_without_a_header_has_its_stated_size_if_asked_for(tmp_path, size, usable):
    write_image(tmp_path, "a")
    write_split(tmp_path, "train", ["a"])
    write_annotation(tmp_path, "a", [object_xml(box=(5, 5, 60, 20))], size=size)
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"")
    if not usable:
        with pytest.raises(ValueError, match=r"a\.jpg: not readable as an image"):
            load_voc(tmp_path, "train", stated_sizes=True)
        return
    dataset = load_voc(tmp_path, "train", stated_sizes=True)
    assert dataset.records[0].boxes.tolist() == [[4, 4, 39, 19]]
    assert "a.jpg: not readable" in dataset.problems[0] and len(dataset.problems) == 2
    # So has one that is missing, if not all are.
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the images of train is there"):
        load_voc(tmp_path, "train", stated_sizes=True)
    write_image(tmp_path, "b")
    write_annotation(tmp_path, "b", [])
    write_split(tmp_path, "train", ["a", "b"])
    again = load_voc(tmp_path, "train", stated_sizes=True)
    assert again.records[0].boxes.tolist() == [[4, 4, 39, 19]]
    assert "a.jpg: no such image file; the" in again.problems[0] and len(again.problems) == 2
    assert again.records[0].image_path.name == "a.jpg"
    write_annotation(tmp_path, "a", [object_xml()], size=size, filename="photo 7.png")
    again = load_voc(tmp_path, "train", stated_sizes=True)
    assert again.records[0].image_path.name == "photo 7.png"


def test_names_of_classes_have_no_spaces_around_them(root):
    write_annotation(root, "a", [object_xml("\n  dog "), object_xml("traffic light")])
    dataset = load_voc(root, "train")
    assert dataset.classes == ("dog", "traffic light")
    assert dataset.records[1].labels.tolist() == [1, 2]


def test_broken_files_are_named(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a bomb, as Pillow calls it
        with pytest.raises(ValueError, match=r"\.jpg: not readable as an image"):
            load_voc(root, "train")
    (root / "JPEGImages/a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg: not readable as an image"):
        load_voc(root, "train")
    for text in ("<annotation><object>", *(
        f"<?xml version='1.0' encoding='{name}'?><annotation/>"
        for name in ("unknown", "utf-7", "rot13", "undefined")
    )):  # fmt: skip
        (root / "Annotations/b.xml").write_text(text)
        with pytest.raises(ValueError, match=r"b\.xml: not readable as XML"):
            load_voc(root, "train")
    # Else what a server says of a missing file is an image without objects.
    (root / "Annotations/b.xml").write_text("<html><object><name>cat</name></object></html>")
    with pytest.raises(ValueError, match=r"b\.xml: must hold an <annotation>.*, got <html>"):
        load_voc(root, "train")


@pytest.mark.parametrize(
    "xml, message",
    [
        (object_xml(""), "object 1: has no name"),
        (object_xml("dog", difficult="maybe"), r"object 1 \(dog\): difficult.*'maybe'"),
    ],
)
def test_objects_that_make_no_sense_are_refused(root, xml, message):
    write_annotation(root, "a", [xml])
    with pytest.raises(ValueError, match=message):
        load_voc(root, "train")


def test_a_data_set_without_any_object_has_no_classes(root):
    write_annotation(root, "a")
    with pytest.raises(ValueError, match="no class is known"):
        load_voc(root, "train")
    assert len(load_voc(root, "train", classes=["dog"]).records) == 2


def test_an_object_that_does_not_say_it_is_difficult_is_not(root):
    stated = object_xml("cat", difficult=1)
    others = "", "<difficult/>", "<difficult>\n</difficult>"
    unstated = [stated.replace("<difficult>1</difficult>", other) for other in others]
    write_annotation(root, "a", [stated, *unstated])
    assert load_voc(root, "train").records[1].difficult.tolist() == [True, False, False, False]


@needs_bccd
def test_bccd_loads_whole():
    start = time.process_time()
    train, test = load_voc(BCCD, "trainval"), load_voc(BCCD, "test")
    assert time.process_time() - start < 2  # 728 files read; about a quarter of a second
    assert (len(train.records), len(test.records)) == (292, 72)
    assert train.classes == test.classes == ("Platelets", "RBC", "WBC")
    counts = sum(np.bincount(r.labels, minlength=4) for r in train.records + test.records)
    assert counts.tolist() == [0, 361, 4153, 372]  # 4155 RBC less the two below
    dropped = [p for p in train.problems + test.problems if "dropped, no width" in p]
    assert len(dropped) == len(train.problems + test.problems) == 2
    assert "BloodImage_00338.xml, object" in "".join(dropped)
    assert "BloodImage_00343.xml, object" in "".join(dropped)
    for record in train.records + test.records:
        x1, y1, x2, y2 = record.boxes.T
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 > x1).all() and (y2 > y1).all()
        assert (x2 <= record.width - 1).all() and (y2 <= record.height - 1).all()


def test_an_annotation_does_not_take_the_image_of_another(root):
    write_annotation(root, "c", filename="a.jpg")  # stale, and there is no image `c`
    (root / "Annotations" / "._a.xml").write_bytes(b"macOS leaves such a file")
    write_split(root, "train", ["b", "c"])
    with pytest.raises(ValueError, match="c.xml: there is no image 'c', and a.jpg, .* of 'a'"):
        load_voc(root, "train")
