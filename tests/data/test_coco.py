from __future__ import annotations

import json

import numpy as np
import pytest

from fastrcnn_engine.data.coco import load_coco, read_instances, to_bbox
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.voc import load_voc

from .coco_files import annotation, coco_copy, write_instances, write_picture
from .voc_files import object_xml, write_annotation, write_image, write_split

CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "zebra"}, {"id": 5, "name": "cat"}]
IMAGES = [
    {"id": 70, "file_name": "a.jpg", "width": 40, "height": 30},
    {"id": 3, "file_name": "sub/b.png"},  # nothing is on it, and its size is not stated
]


def write(root, annotations, images=IMAGES):
    for name in ("a.jpg", "sub/b.png"):
        write_picture(root, "val", name)
    return write_instances(root, "val", images, annotations, CATEGORIES)


def test_reads_boxes_labels_and_crowds_in_the_order_of_the_file(tmp_path):
    write(
        tmp_path,
        [
            annotation(11, 70, 9, [1, 2, 11, 22]),
            annotation(12, 70, 5, [5, 5, 30, 20], iscrowd=1, segmentation={"counts": [1, 2]}),
            annotation(13, 70, 2, [0, 0, 40, 30], ignore=1),
        ],
    )
    dataset = load_coco(tmp_path, "val")
    assert dataset.classes == ("zebra", "cat", "dog")  # by id: 2, 5, 9
    assert dataset.problems == []
    assert (dataset.root, dataset.split) == (tmp_path, "val")
    assert dataset.coco.category_ids == (2, 5, 9)
    full, empty = dataset.records
    assert (full.image_id, empty.image_id) == ("val/70", "val/3")
    assert full.boxes.dtype == np.float32 and full.labels.dtype == np.int64
    assert full.boxes.tolist() == [[1, 2, 11, 23], [5, 5, 34, 24], [0, 0, 39, 29]]
    assert full.labels.tolist() == [3, 2, 1]
    assert full.crowd.tolist() == full.difficult.tolist() == [False, True, True]
    assert (full.width, full.height) == (40, 30)
    assert full.image_path == tmp_path / "val" / "a.jpg"
    assert empty.image_path == tmp_path / "val" / "sub" / "b.png"
    assert empty.boxes.shape == (0, 4) and empty.boxes.dtype == np.float32
    assert empty.labels.shape == empty.difficult.shape == empty.crowd.shape == (0,)


def test_given_classes_choose_categories_and_the_order_of_the_labels(tmp_path):
    path = write(
        tmp_path, [annotation(number, 70, number, [1, 2, 9, 9]) for number in (2, 5, 9)]
    )
    dataset = load_coco(tmp_path, "val", ["dog", "zebra"])
    assert dataset.records[0].labels.tolist() == [2, 1]
    assert dataset.coco.category_ids == (9, 2)
    assert dataset.problems == [f"{path}: objects of other classes are not read: 1 of cat"]
    with pytest.raises(ValueError, match=f"{path.name}: class 'lion'.*zebra, cat, dog; name it"):
        load_coco(tmp_path, "val", ["dog", "lion"])
    for bad in ([], ["dog", "dog"], "dog"):
        with pytest.raises(ValueError, match="classes"):
            load_coco(tmp_path, "val", bad)


def test_an_image_without_a_header_has_its_stated_size_if_asked_for(tmp_path):
    write(tmp_path, [annotation(11, 70, 9, [1, 2, 60, 22])])
    whole = load_dataset(tmp_path, "val")
    (tmp_path / "val" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg: not readable as an image"):
        load_dataset(tmp_path, "val")
    dataset = load_dataset(tmp_path, "val", stated_sizes=True)
    assert (dataset.records[0].width, dataset.records[0].height) == (40, 30)
    assert dataset.records[0].boxes.tolist() == whole.records[0].boxes.tolist()
    told = [line for line in dataset.problems if line not in whole.problems]
    assert len(told) == 1 and "a.jpg: not readable" in told[0] and "40x30, is used" in told[0]
    (tmp_path / "val" / "sub" / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.png: not readable as an image"):  # states no size
        load_dataset(tmp_path, "val", stated_sizes=True)
    for size in (10**400, 10**9, -5, 1e999, "9" * 5000, [40]):  # nor are these sizes of an image
        write(tmp_path, [annotation(1, 3, 9, [1, 2, 6, 2])],
              [IMAGES[0], IMAGES[1] | {"width": size, "height": size}])  # fmt: skip
        (tmp_path / "val" / "sub" / "b.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"b\.png: not readable as an image"):
            load_dataset(tmp_path, "val", stated_sizes=True)


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"width": 80, "height": 60}, True),  # boxes of the photo before it was shrunk
        ({"width": 30, "height": 40}, True),  # as it lies after EXIF's rotation
        ({"width": 40.0, "height": 30.0}, False),
        ({"width": "40", "height": "30"}, False),
        ({"width": None, "height": 30}, False),
    ],
)
def test_another_size_than_the_files_is_told(tmp_path, stated, told):
    path = write(tmp_path, [annotation(1, 70, 9, [1, 2, 9, 9])], [{**IMAGES[0], **stated}])
    dataset = load_coco(tmp_path, "val")
    assert (dataset.records[0].width, dataset.records[0].height) == (40, 30)
    size = f"{stated['width']}x{stated['height']}"
    line = f"{path}, image id 70: states size {size}, the image has 40x30; the image's size is used"
    assert dataset.problems == [line] * told


def test_boxes_survive_the_way_to_pixels_and_back(tmp_path):
    random = np.random.default_rng(0)
    whole = random.integers(0, 12, (50, 4)) + [0, 0, 2, 2]
    parts = np.round(random.random((50, 4)) * [20, 15, 16, 12] + [0, 0, 2, 2], 2)
    for number, bboxes in enumerate((whole, parts)):
        root = tmp_path / str(number)
        write(root, [annotation(i, 70, 2, row) for i, row in enumerate(bboxes.tolist())])
        boxes = load_coco(root, "val").records[0].boxes
        assert boxes[0, 2] == np.float32(bboxes[0, 0] + bboxes[0, 2] - 1)
        # Whole pixels exactly; others to the last place of float32.
        np.testing.assert_allclose(to_bbox(boxes), bboxes, rtol=0, atol=0 if number == 0 else 4e-6)
    assert to_bbox(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    "bad, why",
    [
        ({"bbox": [5, 5, 0, 9]}, "no width"),
        ({"bbox": [5, 5, 1, 9]}, "no width"),  # one pixel: regression divides by x2 - x1
        ({"bbox": [5, 5, 9, -2]}, "no height"),
        ({"bbox": [50, 5, 9, 9]}, "outside the image of 40x30"),
        ({"bbox": [-9, 5, 9, 9]}, "outside the image of 40x30"),
        ({"bbox": [5, 5, 9]}, "no number"),
        ({"bbox": [5, 5, 9, "x"]}, "no number"),
        ({"bbox": "1299"}, "no number"),
        ({"bbox": [5, 5, float("nan"), 9]}, "no number"),
        ({"bbox": None}, "no number"),
        ({"bbox": [5, 5, 10**400, 9]}, "no number"),
        ({"category_id": 4}, "category_id, 4, is no category"),
        ({"category_id": None}, "category_id, None, is no category"),
        ({"category_id": [2]}, "is no category"),
        ({"image_id": 71}, "image_id, 71, is no image"),
        ({"image_id": "70"}, "image_id, '70', is no image"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_dropped_and_reported(tmp_path, bad, why):
    write(
        tmp_path,
        [annotation(11, 70, 9, [1, 2, 11, 22]), annotation(12, 70, 2, [5, 5, 9, 9]) | bad],
    )
    dataset = load_coco(tmp_path, "val")
    assert dataset.records[0].labels.tolist() == [3]
    (problem,) = dataset.problems
    assert "instances_val.json, annotation id 12: dropped" in problem and why in problem


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox", "iscrowd", "area"])
def test_missing_fields(tmp_path, key):
    entry = annotation(12, 70, 2, [5, 5, 9, 9])
    del entry[key]
    write(tmp_path, [annotation(11, 70, 9, [1, 2, 11, 22]), entry])
    dataset = load_coco(tmp_path, "val")
    needed = key in ("image_id", "category_id", "bbox")
    assert len(dataset.records[0].boxes) == (1 if needed else 2)
    assert len(dataset.problems) == needed
    if key == "id":
        entry["bbox"] = [0, 0, 0, 0]
        write(tmp_path, [entry])
        assert "annotation without id at place 0: dropped" in load_coco(tmp_path, "val").problems[0]


def test_a_box_partly_outside_is_clipped_and_reported(tmp_path):
    write(
        tmp_path,
        [
            annotation(1, 70, 9, [-2, 20, 12, 11]),
            annotation(2, 70, 9, np.float32([0.1, 0, 39.9, 30]).tolist()),  # 1.5e-6 beyond
        ],
    )
    dataset = load_coco(tmp_path, "val")
    boxes = dataset.records[0].boxes
    assert boxes[0].tolist() == [0, 20, 9, 29] and boxes[1, 2] == 39  # the last pixel is inside
    (problem,) = dataset.problems
    assert "annotation id 1: clipped to the image of 40x30: bbox [-2, 20, 12, 11]" in problem


def test_a_file_that_has_two_ids_is_told(tmp_path):
    write(tmp_path, [annotation(1, 70, 9, [1, 1, 5, 5])], [*IMAGES, {**IMAGES[0], "id": 71}])
    dataset = load_coco(tmp_path, "val")
    assert len(dataset.records) == 3
    (problem,) = dataset.problems
    assert "image id 71: its file, a.jpg, is that of image id 70 too" in problem


def test_a_crowd_may_be_told_by_a_text_and_by_nothing_that_is_not_clear(tmp_path):
    flags = [0, "0", 0.0, False, None, 1, "1", True]
    write(tmp_path, [annotation(i, 70, 9, [1, 2, 9, 9], iscrowd=f) for i, f in enumerate(flags)])
    assert load_coco(tmp_path, "val").records[0].crowd.tolist() == 5 * [False] + 3 * [True]
    for key, flag in (("iscrowd", "false"), ("ignore", "0.0"), ("iscrowd", [0])):
        write(tmp_path, [annotation(5, 70, 9, [1, 2, 9, 9], **{key: flag})])
        errors = []
        load_coco(tmp_path, "val", errors=errors)
        assert len(errors) == 1
        assert f"annotation id 5: {key} must be 0 or 1, got {flag!r}; write" in errors[0]
    # Of a box that is not used, too: the evaluation counts what the file states.
    write(tmp_path, [annotation(5, 70, 9, [999, 2, 9, 9], iscrowd="false")])
    with pytest.raises(ValueError, match="annotation id 5: iscrowd"):
        load_coco(tmp_path, "val")


def test_images_that_cannot_be_used_are_dropped_and_reported(tmp_path):
    images = [
        *IMAGES, {"id": 4, "file_name": "gone.jpg"}, {"id": 5}, {"file_name": "a.jpg"},
        {"id": "6", "file_name": "a.jpg"},
    ]  # fmt: skip
    write(tmp_path, [annotation(1, 4, 9, [1, 1, 5, 5])], images)
    dataset = load_coco(tmp_path, "val")
    assert [record.image_id for record in dataset.records] == ["val/70", "val/3"]
    missing, no_name, no_id, text = dataset.problems
    assert "image id 4: dropped with its objects, no file" in missing and "gone.jpg" in missing
    assert "image id 5: dropped, needs" in no_name
    assert "image without id at place 4: dropped" in no_id and "image id 6: dropped" in text

    with pytest.raises(ValueError, match="image id 70: this id comes twice"):
        write(tmp_path, [], [*IMAGES, IMAGES[0]])
        load_coco(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="none of the images.*gone.jpg"):
        write(tmp_path, [], images[2:3])
        load_coco(tmp_path, "val")
    write(tmp_path, [])
    (tmp_path / "val" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg: not readable as an image"):
        load_coco(tmp_path, "val")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not readable as JSON.*line 1"),
        ("[" * 10**5, "not readable as JSON.*recursion"),
        ("[]", "expected an object with images"),
        ("{}", "'images' must be a list of objects, it is missing"),
        ('{"images": []}', "'annotations' must be a list of objects, it is missing"),
        ('{"images": {}}', "'images' must be a list of objects, got dict"),
        ('{"images": [1]}', "'images' must be a list of objects"),
        ('{"images": [], "annotations": [], "categories": []}', "'categories' is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\] needs"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "a"}]}',
            r"categories\[0\] needs a whole number id and a name",
        ),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            r"categories\[1\].*comes twice",
        ),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            r"categories\[1\].*comes twice",
        ),
    ],
)
def test_a_file_that_is_not_understood_is_named_with_its_key(tmp_path, text, message):
    path = write_instances(tmp_path, "val", [], [], [])
    path.write_text(text)
    with pytest.raises(ValueError, match=f"instances_val.json: .*{message}|json.*{message}"):
        load_coco(tmp_path, "val")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="instances_val.json: not readable as JSON"):
        load_coco(tmp_path, "val")


def test_a_file_may_begin_as_windows_editors_begin_it(tmp_path):
    path = write(tmp_path, [annotation(1, 70, 9, [1, 2, 9, 9])])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_coco(tmp_path, "val").records[0].boxes) == 1


def test_outlines_are_not_kept(tmp_path):
    path = write(tmp_path, [annotation(1, 70, 9, [1, 1, 5, 5])])
    content = read_instances(path)
    assert "segmentation" in path.read_text() and "segmentation" not in json.dumps(content)


def test_the_layout_decides_which_reader(tmp_path):
    voc, coco, both = (tmp_path / name for name in ("voc", "coco", "both"))
    for root in (voc, both):
        write_image(root, "a")
        write_annotation(root, "a", [object_xml("dog")])
        write_split(root, "train", ["a"])
    for root in (coco, both):
        write(root, [])
    assert load_dataset(voc, "train").coco is None
    assert load_dataset(coco, "val").coco is not None
    assert load_dataset(both, "train").coco is None and load_dataset(both, "val").coco is not None
    with pytest.raises(FileNotFoundError, match=r"instances_test\.json.*splits found.*: val"):
        load_dataset(coco, "test")
    with pytest.raises(FileNotFoundError, match=r"test\.txt.*train"):
        load_dataset(voc, "test")
    with pytest.raises(FileNotFoundError, match=r"instances_test\.json.*ImageSets/Main/test\.txt"):
        load_dataset(tmp_path, "test")
    (coco / "val").rename(coco / "images")
    with pytest.raises(FileNotFoundError, match=r"val: no such folder.*instances_val\.json"):
        load_dataset(coco, "val")


def test_images_are_found_where_other_programs_leave_them(tmp_path):
    path = write(tmp_path, [annotation(1, 70, 9, [1, 2, 9, 9])], [IMAGES[0]])
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "val/a.jpg"
    path.write_text(json.dumps(content))
    assert load_coco(tmp_path, "val").records[0].image_path == tmp_path / "val" / "a.jpg"
    content["images"][0]["file_name"] = "a.jpg"
    content["images"].append({"id": 71, "file_name": "val/a.jpg"})  # another name of the same file
    content["images"].append({"id": 72, "file_name": "b.jpg"})
    path.write_text(json.dumps(content))
    dataset = load_coco(tmp_path, "val")
    assert "image id 71: its file, val/a.jpg, is that of image id 70 too" in dataset.problems[0]
    assert dataset.missing == (tmp_path / "val" / "b.jpg",)
    (tmp_path / "images").mkdir()
    (tmp_path / "val").rename(tmp_path / "images" / "val")
    dataset = load_coco(tmp_path, "val")
    assert dataset.records[0].image_path == tmp_path / "images" / "val" / "a.jpg"
    assert len(dataset.records) == 1 and len(dataset.missing) == 2
    (tmp_path / "images" / "val" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg; looked in \S+, \S+, \S+/images/val$"):
        load_coco(tmp_path, "val")


def test_other_layouts_are_named_with_what_to_do(tmp_path):
    def told(root=tmp_path, split="train"):
        with pytest.raises(FileNotFoundError) as error:
            load_dataset(root, split)
        return str(error.value)

    assert told().endswith("ImageSets/Main/train.txt (VOC)")
    assert told(tmp_path / "absent") == f"{tmp_path / 'absent'}: no such folder"
    for folders in (("images/train", "labels/train"), ("train/images", "train/labels")):
        root = tmp_path / folders[0].replace("/", "-")
        for folder in folders:
            (root / folder).mkdir(parents=True)
        assert "labels looks like YOLO's: its labels are not read, convert" in told(root)
    for inside in ("VOC2007", "VOCdevkit/VOC2012"):
        kit = tmp_path / inside.replace("/", "-")
        (kit / inside / "ImageSets" / "Main").mkdir(parents=True)
        assert told(kit).endswith(f"; {kit / inside} looks like one: give that folder")
    write(tmp_path / "above" / "coco", [])
    assert told(tmp_path / "above").endswith(f"; {tmp_path / 'above/coco'} looks like one: give "
                                             "that folder")  # fmt: skip
    roboflow = tmp_path / "roboflow"
    for split in ("train", "valid"):
        path = write_instances(roboflow, split, IMAGES[:1], [], CATEGORIES)
        write_picture(roboflow, split, "a.jpg")
        path.rename(roboflow / split / "_annotations.coco.json")
    move = "valid/_annotations.coco.json to annotations/instances_valid.json"
    first = "move train/_annotations.coco.json to annotations/instances_train.json"
    assert told(roboflow).endswith(f": {first}, {move}")
    (roboflow / "train" / "_annotations.coco.json").rename(
        roboflow / "annotations" / "instances_train.json"
    )
    assert len(load_dataset(roboflow, "train").records) == 1
    assert told(roboflow, "valid").endswith(f": move {move}")  # one was done, one forgotten
    assert told(roboflow, "test").endswith("beside it: train; give one of them by split")


def test_a_copy_of_a_voc_set_gives_the_same_records(tmp_path):
    voc = write_demo_set(tmp_path / "voc", seed=10, train=12, test=2)
    coco = coco_copy(voc, tmp_path / "coco", ["train", "test"], crowds=True)
    crowds = 0
    for split in ("train", "test"):
        before, after = load_voc(voc, split), load_coco(coco, split)
        assert after.classes == before.classes and after.problems == []
        for one, other in zip(before.records, after.records, strict=True):
            assert (one.width, one.height) == (other.width, other.height)
            assert one.image_path.name == other.image_path.name
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.difficult, other.difficult)
            assert not one.crowd.any()
            crowds += other.crowd.sum()
            np.testing.assert_array_equal(other.crowd, other.difficult)
    assert crowds > 0
