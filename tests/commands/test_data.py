"""Proposals of a data set: searched, read from others' files, and put together."""

from __future__ import annotations

import pickle
import re
import shutil

import numpy as np
from scipy.io import savemat

from data.coco_files import coco_copy
from data.edge_models import write_edge_model
from fastrcnn_engine.commands.shards import shard_file, shard_files
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import ProposalStore, edge_boxes

from .steps import failure, run, run_with_failures


def test_proposals_go_to_a_file_and_are_summed_up(drawn, tmp_path, capsys):
    out = tmp_path / "p.npz"
    run("proposals", "--data", drawn, "--split", "train", "test", "--out", out, "--short-side", 80)
    store = ProposalStore(out)
    assert len(store) == 6 and store["test_0001"].shape[1] == 4
    assert store.settings["short_side"] == 80
    text = " ".join(capsys.readouterr().out.split())
    assert "p.npz" in text and "split ┃ images ┃ boxes an image ┃ recall at IoU 0.5 ┃" in text
    boxes = np.mean([len(store[f"train_000{i}"]) for i in range(4)])
    assert re.search(rf"train │ 4 │ {boxes:.0f} │ [01]\.\d+ │ [01]\.\d+ │", text)


def test_a_training_skips_images_that_have_no_proposals_as_they_cannot_be_read(
    drawn, tmp_path, capsys
):
    data = shutil.copytree(drawn, tmp_path / "data")
    (data / "JPEGImages/train_0001.jpg").write_bytes(b"no image")
    (data / "JPEGImages/train_0002.jpg").unlink()
    out = tmp_path / "p.npz"
    command = ("--data", data, "--split", "train")
    search = ("--method", "grid", "--max-boxes", 20)
    run_with_failures("proposals", *command, "--out", out, *search)
    text = capsys.readouterr().out
    assert "2 images that cannot be read, without proposals" in text
    assert "train_0001.jpg: not readable" in text and "train_0002.jpg: no such image" in text
    assert [len(ProposalStore(out)[f"train_000{i}"]) for i in range(4)] == [20, 0, 0, 20]
    run("train", *command, "--network", "tiny", "--proposals", out, "--out", tmp_path / "run",
        "--iterations", 4, "--short-side", 120, "--on-bad-image", "skip")  # fmt: skip
    assert "2 images that cannot be read, replaced by others" in capsys.readouterr().out


def test_proposals_are_searched_in_parts_and_joined(drawn, tmp_path, capsys):
    command = ("proposals", "--data", drawn, "--split", "train", "test", "--short-side", 80,
               "--out", tmp_path / "boxes.npz")  # fmt: skip
    run(*command)
    whole = tmp_path / "whole.npz"
    (tmp_path / "boxes.npz").rename(whole)
    capsys.readouterr()
    for part, counts in (("02/10", "train │ 1 │"), ("10/10", "train │ 0 │")):
        run(*command, "--shard", part)
        assert counts in " ".join(capsys.readouterr().out.split())  # of those that are searched
    assert sorted(path.name for path in tmp_path.glob("boxes.*")) == [
        "boxes.02-of-10.npz", "boxes.10-of-10.npz",
    ]  # fmt: skip
    second = ProposalStore(tmp_path / "boxes.02-of-10.npz")
    assert list(second) == list(ProposalStore(whole))[1:2]
    assert len(ProposalStore(tmp_path / "boxes.10-of-10.npz")) == 0  # of six images
    run(*command)
    assert (tmp_path / "boxes.npz").read_bytes() == whole.read_bytes()
    capsys.readouterr()
    assert "nothing to search" in failure(capsys, *command, "--read", whole, "--shard", "1/2")
    assert "shard is '0/2'" in failure(capsys, *command, "--shard", "0/2")


def test_files_of_parts_are_known_by_their_whole_names(tmp_path):
    path = tmp_path / "a+b.npz"
    own = [shard_file(path, f"{number}/12") for number in (1, 12)]
    for one in (*own, path, own[0].with_name(f"{own[0].name}.bak"), tmp_path / "aab.01-of-12.npz"):
        one.touch()
    assert shard_files(path) == own
    assert shard_files(tmp_path / "absent" / "a.npz") == []


def test_methods_and_numbers_of_proposals_are_options(drawn, tmp_path, capsys):
    def made(*options):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        run("proposals", "--data", drawn, "--split", "test", "--out", out, *options)
        assert "recall at IoU" in capsys.readouterr().out
        return ProposalStore(out)

    grid = made("--method", "grid", "--max-boxes", 50)
    assert grid.settings["method"] == "grid" and len(grid["test_0000"]) == 50
    other = made("--method", "grid", "--max-boxes", 50, "--seed", 4)
    assert grid["test_0000"].tolist() != other["test_0000"].tolist()
    image = load_image(drawn / "JPEGImages/test_0000.jpg")
    ranked = made("--method", "edge-boxes", "--max-boxes", 30)
    np.testing.assert_array_equal(ranked["test_0000"], edge_boxes(image)[:30])
    model = write_edge_model(tmp_path / "model.yml")
    trained = made("--method", "edge-boxes", "--max-boxes", 30, "--edge-model", model)
    np.testing.assert_array_equal(trained["test_0000"], edge_boxes(image, model=model)[:30])

    asked = ("proposals", "--data", drawn, "--split", "test")
    assert "the method is grid" in failure(
        capsys, *asked, "--method", "grid", "--edge-model", "m.yml"
    )
    assert "max_boxes must be above 0" in failure(capsys, *asked, "--max-boxes", 0)
    line = failure(capsys, *asked, "--out", tmp_path / "no.npz", "--method", "edge-boxes",
                   "--edge-model", "absent.yml")  # fmt: skip
    assert "absent.yml: no such model" in line


def test_published_proposals_go_to_a_file(drawn, tmp_path, capsys):
    def published(name, *images):  # 1-based y1 x1 y2 x2
        cell = np.empty((1, len(images)), object)
        for column, boxes in enumerate(images):
            cell[0, column] = np.array(boxes, np.uint16)
        savemat(tmp_path / name, {"boxes": cell})
        return tmp_path / name

    one, two, out = [[1, 2, 11, 22]], [[3, 4, 5, 6], [5, 6, 7, 8]], tmp_path / "p.npz"
    test = published("test.mat", one, two)
    train = published("train.mat", two, one, two, one)
    both = ("proposals", "--data", drawn, "--split", "train", "test", "--out", out, "--read")
    assert "splits: 2, files without names of images: 1;" in failure(capsys, *both, test)
    line = failure(capsys, *both, test, train)
    assert "test.mat: 2, in train: 4" in line
    line = failure(capsys, *both, train, published("far.mat", one, [[1, 1, 241, 320]]))
    assert "far.mat has boxes outside of image test_0001" in line
    run(*both, train, test)
    store = ProposalStore(out)
    assert len(store) == 6 and store["train_0001"].tolist() == [[1, 0, 21, 10]]
    assert store["test_0001"].tolist() == [[3, 2, 5, 4], [5, 4, 7, 6]]
    assert store.settings == {"method": "read", "files": ["train.mat", "test.mat"]}
    assert "exists already" in failure(capsys, *both, train, test)
    for option, value in (("--min-size", 32), ("--method", "grid"), ("--mode", "fast"),
                          ("--short-side", 80), ("--edge-model", "m.yml")):  # fmt: skip
        line = failure(capsys, *both, train, test, "--out", tmp_path / "new.npz", option, value)
        assert f"{option} is {value}, but with --read nothing is searched" in line


def test_proposals_of_others_are_put_together(drawn, tmp_path, capsys):
    """As in figure 3 of the paper: the boxes of a search, and dense ones beside them."""
    boxes = np.float32([[0, 0, 60, 60], [20, 10, 120, 90], [5, 5, 300, 200]])
    content = {
        "ids": ["test_0000", "test_0001", *(f"elsewhere_{i}" for i in range(7))],
        "boxes": [boxes] * 9,
        "objectness_logits": [np.float32([0, 2, 1])] * 9,
        "bbox_mode": 0,
    }
    pickled, dense = tmp_path / "box_proposals.pkl", tmp_path / "dense.npz"
    pickled.write_bytes(pickle.dumps(content))
    asked = ("proposals", "--data", drawn, "--split", "test")
    run(*asked, "--method", "grid", "--max-boxes", 20, "--out", dense)
    run(*asked, "--read", pickled, dense, "--out", tmp_path / "both.npz")
    text = capsys.readouterr().out
    assert "7 images in the files that none of the splits has" in text
    assert "box_proposals.pkl: elsewhere_4\n  and 2 more\n" in text and "recall at IoU" in text
    found = ProposalStore(tmp_path / "both.npz")["test_0000"]
    assert len(found) == 23 and found[0].tolist() == [20, 10, 119, 89]
    np.testing.assert_array_equal(found[3:], ProposalStore(dense)["test_0000"])
    drawn_of = []
    for seed in (4, 5):
        out = tmp_path / f"{seed}.npz"
        run(*asked, "--read", pickled, dense, "--max-boxes", 9, "--seed", seed, "--out", out)
        drawn_of.append(ProposalStore(out)["test_0000"].tolist())
    assert drawn_of[0] != drawn_of[1] and len(drawn_of[0]) == 9
    # What is read again keeps its order.
    run(*asked, "--read", pickled, "--max-boxes", 2, "--out", tmp_path / "best.npz")
    best = ProposalStore(tmp_path / "best.npz")
    assert best.settings["ranked"] is True and best.settings["max_boxes"] == 2
    assert best["test_0001"].tolist() == [[20, 10, 119, 89], [5, 5, 299, 199]]
    run(*asked, "--read", tmp_path / "best.npz", "--max-boxes", 1, "--out", tmp_path / "one.npz")
    one = ProposalStore(tmp_path / "one.npz")["test_0001"]
    assert one.tolist() == [[20, 10, 119, 89]]

    hostile = tmp_path / "hostile.pkl"
    hostile.write_bytes(b"cos\nsystem\n(Vtrue\ntR.")
    line = failure(capsys, *asked, "--read", hostile, "--out", tmp_path / "no.npz")
    assert "hostile.pkl" in line and "os.system" in line
    content["ids"][1] = "another"
    pickled.write_bytes(pickle.dumps(content))
    line = failure(capsys, *asked, "--read", pickled, "--out", tmp_path / "no.npz")
    assert "--read: no proposals for image 'test_0001'" in line
    assert not (tmp_path / "no.npz").exists()


def test_coco_data_has_proposals_and_mistakes_are_named(drawn, trained, tmp_path, capsys):
    data = coco_copy(drawn, tmp_path / "copy", ["test"], crowds=True)
    run("proposals", "--data", data, "--split", "test", "--short-side", 80)
    store = ProposalStore(data / "proposals.npz")
    before = ProposalStore(trained / "proposals.npz")
    assert np.array_equal(store["test/7"], before["test_0000"])
    line = failure(capsys, "eval", "--run", trained, "--data", data, "--split", "val")
    assert "instances_val.json: no such file; splits found beside it: test; give one" in line
    line = failure(capsys, "train", "--data", tmp_path, "--split", "val", "--network", "tiny")
    assert "looked for annotations/instances_val.json" in line and "ImageSets/Main/val.txt" in line
    path = data / "annotations" / "instances_test.json"
    path.write_text(path.read_text().replace('"star"', '"comet"'))
    line = failure(capsys, "eval", "--run", trained, "--data", data)
    assert "class 'star' is not one of its categories" in line
    path.write_text("{")
    assert "not readable as JSON" in failure(capsys, "eval", "--run", trained, "--data", data)
