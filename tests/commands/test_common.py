"""Data and proposals of a training, as eval and detect find them again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.edge_models import write_edge_model
from fastrcnn_engine.commands import bulk, detection, plain_console, stages
from fastrcnn_engine.commands.common import print_result
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore, Search, write_proposals
from fastrcnn_engine.data.records import Dataset, record_of
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.training import load_checkpoint, load_network, save_checkpoint

from .steps import failure, nothing_is_begun, run


@pytest.fixture
def retrained(trained, tmp_path):
    """A copy of the run as of other proposals; returns the function that makes these."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("eval-*", "proposals.npz"))
    content = load_checkpoint(folder / "checkpoint.pt")
    path = folder / "proposals.npz"
    content["config"]["proposals"] = str(path)

    def made(settings):
        torch.save(content | {"proposals_made_with": settings}, folder / "checkpoint.pt")
        write_proposals(path, [("train_0000", np.float32([[0, 0, 9, 9]]))], settings=settings)
        return folder

    return made


@pytest.mark.parametrize(
    "search",
    [Search(mode="fast", short_side=80), Search("grid", max_boxes=9, seed=5),
     Search("edge-boxes", short_side=90, max_boxes=11)],
    ids=lambda search: search.method,
)  # fmt: skip
def test_proposals_on_the_fly_are_made_as_those_of_the_training(
    search, retrained, drawn, tmp_path, monkeypatch
):
    folder = retrained(search.to_dict())
    image = drawn / "JPEGImages/test_0000.jpg"
    expected = search.boxes(load_image(image), "test_0000")
    used = []

    def noted(model, pixels, proposals, **options):
        used.append(proposals)
        return detect_image(model, pixels, proposals, **options)

    for place in (bulk, detection, stages):
        monkeypatch.setattr(place, "detect_image", noted)
    for many in ((), ("--many",)):
        run("detect", image, "--checkpoint", folder, "--out", tmp_path / "found", *many)
    run("eval", "--run", folder, "--split", "test")
    assert len(used) == 4  # two images of eval
    for proposals in used[:3]:
        np.testing.assert_array_equal(proposals, expected)
    store = ProposalStore(folder / "proposals.npz")
    assert store.settings == search.to_dict() and "train_0000" in store and "test_0001" in store


def test_proposals_that_cannot_be_made_again_are_told(retrained, drawn, tmp_path, capsys):
    image = drawn / "JPEGImages/test_0000.jpg"
    asked = ("detect", image, "--out", tmp_path / "found", "--checkpoint")
    for made in ({"method": "read", "files": ["a.mat"]}, None):  # the second of somebody's own
        folder = retrained(made)
        for many in ((), ("--many",)):
            line = failure(capsys, *asked, folder, *many)
            assert f"{folder / 'checkpoint.pt'} learned from {folder / 'proposals.npz'}, " in line
            assert "give --proposals, " in line and "or --mode for selective search" in line
        assert not (tmp_path / "found").exists()
        # It does not have the images of the test.
        line = failure(capsys, "eval", "--run", folder)
        assert "give --proposals, " in line and "or one that `fastrcnn-engine proposals` ma" in line
        before = (folder / "proposals.npz").read_bytes()
        run(*asked, folder, "--mode", "fast", "--many")
        note = json.loads((tmp_path / "found/detections.jsonl.made-by.json").read_text())
        assert note["search"] == Search(mode="fast").to_dict()
        assert (folder / "proposals.npz").read_bytes() == before
        shutil.rmtree(tmp_path / "found")
    line = failure(capsys, *asked, retrained(Search("grid").to_dict()), "--mode", "fast")
    assert "--mode is fast, but the proposals of the training are of grid" in line
    settings = Search("edge-boxes").to_dict() | {"edge_model": str(tmp_path / "absent.yml")}
    for many in ((), ("--many",)):
        line = failure(capsys, *asked, retrained(settings), *many)
        assert "absent.yml: no such model" in line
    model = write_edge_model(tmp_path / "model.yml")
    settings = Search("edge-boxes", edge_model=model).to_dict()
    run(*asked, retrained(settings))
    write_edge_model(model, threshold=0.9)
    line = failure(capsys, *asked, retrained(settings))
    assert "model.yml: another model than the one that made the proposals" in line


def test_a_place_for_results_that_is_none_is_told_before_the_work(
    trained, drawn, tmp_path, capsys, monkeypatch
):
    nothing_is_begun(monkeypatch)
    file = tmp_path / "file"
    file.touch()
    image, run_of = drawn / "JPEGImages/test_0000.jpg", ("--checkpoint", trained)
    for command, out in (
        (("detect", image, *run_of), file),
        (("detect", image, *run_of, "--many"), file / "deeper"),
        (("eval", *run_of), file / "deeper"),
        (("export", *run_of), file / "detector.onnx"),
        (("compress", *run_of), file),
        (("check-data", "--data", drawn), file / "deeper"),
        (("train", "--data", drawn, "--split", "train", "--network", "tiny"), file),
        (("demo",), file),
    ):
        line = failure(capsys, *command, "--out", out)
        assert f"--out: {file} is a file, not a folder" in line, command
    assert file.read_bytes() == b"" and list(tmp_path.iterdir()) == [file]


def test_results_of_others_are_not_replaced(trained, drawn, tmp_path, capsys, monkeypatch):
    nothing_is_begun(monkeypatch)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("checkpoint.pt", "metrics.json", "notes.txt"):
        (other / name).write_text("somebody's")
    image, run_of = drawn / "JPEGImages/test_0000.jpg", ("--checkpoint", trained)
    line = failure(capsys, "detect", image, *run_of, "--out", other)
    assert f"--out: {other} holds a run or a test (checkpoint.pt), whose detections.json" in line
    line = failure(capsys, "eval", *run_of, "--out", other)
    assert f"--out: {other} holds a run, whose own test would be replaced" in line
    line = failure(capsys, "export", *run_of, "--out", other / "notes.txt")
    assert f"--out: {other / 'notes.txt'} exists already and is no .onnx file" in line
    (other / "checkpoint.pt").unlink()
    line = failure(capsys, "detect", image, *run_of, "--out", other)
    assert f"--out: {other} holds a run or a test (metrics.json), whose detections.json" in line
    assert {path.read_text() for path in other.iterdir()} == {"somebody's"}


def test_a_search_by_nobody_is_refused(drawn, tmp_path, capsys):
    line = failure(capsys, "proposals", "--data", drawn, "--split", "test",
                   "--out", tmp_path / "p", "--workers", 0)  # fmt: skip
    assert "workers is 0; it must be at least 1" in line


def test_classes_that_are_never_found_are_named(tmp_path, capsys):
    box = np.zeros((1, 4), np.float32)
    labels = np.array([1, 1, 2])
    record = record_of("a", tmp_path / "a.png", (9, 9), [(0, 0, 8, 8)] * 3, labels, [False] * 3)
    found = Detections(box, np.float32([0.9]), np.array([2]), np.array([0]))
    dataset = Dataset(("cat", "dog", "emu"), [record], [], tmp_path, "test")
    result = evaluate_voc([record], dataset.classes, {"a": found})
    print_result(plain_console(), stages.Run("", tmp_path, "", 3), dataset, result, None)
    said = capsys.readouterr().out
    assert "1 class with objects and without a detection:\n  cat\n" in said  # and not of emu


def test_the_table_of_a_test_says_what_its_columns_say(tmp_path, monkeypatch, capsys):
    boxes = [(0, 0, 9, 9), (30, 0, 39, 9)]
    records = [record_of("a", tmp_path / "a.png", (50, 20), boxes, [1, 1], [False, False])]
    found = Detections(np.float32([boxes[0], (20, 9, 29, 19), (0, 9, 9, 19)]),
                       np.float32([0.9, 0.8, 0.7]), np.ones(3, np.int64), np.arange(3))  # fmt: skip
    result = evaluate_voc(records, ("cat",), {"a": found}, iou_threshold=0.6, metric="11point")
    monkeypatch.setenv("COLUMNS", "120")
    run_of = stages.Run("A run", tmp_path, "train", 3, seconds={"training": 60.0, "test": 2.4})
    dataset = Dataset(("cat",), records, [], tmp_path, "test")
    with run_of.timed("test"):
        pass  # adds to what there is
    print_result(plain_console(), run_of, dataset, result, None)
    text = " ".join(re.sub(r"[^\w\s.,:()/'-]", "", capsys.readouterr().out).split())
    for words in (
        "A run: AP at IoU 0.6 class AP, area AP, 11 points objects detections right at IoU 0.6",
        "cat 0.500 0.545 2 3 1 mean 0.500 0.545 mAP (11point): 0.545 62 s",
    ):
        assert words in text, words
    assert "for a server" not in text


def test_a_checkpoint_of_no_training_says_what_is_missing(trained, drawn, tmp_path, capsys):
    path = tmp_path / "own.pt"
    save_checkpoint(path, load_network(trained / "checkpoint.pt"))
    line = failure(capsys, "eval", "--checkpoint", path)
    assert f"{path} does not say what it was trained on; give --data" in line
    line = failure(capsys, "svm", "--checkpoint", path, "--data", drawn)
    assert f"{path} does not say what it was trained on; give --proposals" in line
    # Which searches as by default: there is nothing to differ from.
    run("detect", drawn / "JPEGImages/test_0000.jpg", "--checkpoint", path, "--out", tmp_path)


def train_in(folder, drawn, monkeypatch, **made) -> Path:
    """A run in `folder` whose data and proposals are named relative to it.

    made: what the file says of how they were made; without it, the truth.
    """
    data = shutil.copytree(drawn, folder / "data")
    records = load_dataset(data, "train").records
    search = Search("grid", max_boxes=9)
    boxes = {r.image_id: search.boxes(load_image(r.image_path), r.image_id) for r in records}
    write_proposals(folder / "p.npz", boxes.items(), settings=made or search.to_dict())
    monkeypatch.chdir(folder)
    run("train", "--data", "data", "--network", "tiny", "--split", "train", "--out", "runs/a",
        "--iterations", 1, "--short-side", 120, "--proposals", "p.npz")  # fmt: skip
    return folder / "runs/a"


def test_detect_and_eval_find_what_was_trained_on_from_any_folder(
    drawn, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    image = drawn / "JPEGImages/test_0000.jpg"
    folder = train_in(home, drawn, monkeypatch)

    def found(run_of):
        out = tmp_path / "found"
        run("detect", image, "--checkpoint", run_of, "--out", out, "--score-threshold", "0")
        return json.loads((out / "detections.json").read_text())["images"][str(image)]

    expected = found("runs/a")
    assert len({tuple(one["box"]) for one in expected}) > 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Nothing of that name here is what the training had.
    write_proposals(elsewhere / "p.npz", [], settings=Search().to_dict())
    monkeypatch.chdir(elsewhere)
    assert found(folder) == expected
    # Moved, run and proposals together.
    home.rename(tmp_path / "moved")
    folder = tmp_path / "moved/runs/a"
    assert found(folder) == expected
    run("eval", "--run", folder, "--split", "train")
    assert not (folder / "proposals.npz").exists()  # those of the training served
    run("eval", "--run", folder)
    assert ProposalStore(folder / "proposals.npz").settings == Search("grid", max_boxes=9).to_dict()
    run("svm", "--checkpoint", folder)


def test_proposals_that_are_missing_are_told(drawn, tmp_path, monkeypatch, capsys):
    image = drawn / "JPEGImages/test_0000.jpg"
    detect = ("detect", image, "--out", tmp_path / "found", "--checkpoint")
    folder = train_in(tmp_path / "home", drawn, monkeypatch)
    (tmp_path / "home/p.npz").unlink()
    run(*detect, folder)  # the checkpoint says how they were made
    run("eval", "--run", folder)
    assert ProposalStore(folder / "proposals.npz").settings == Search("grid", max_boxes=9).to_dict()
    (folder / "proposals.npz").unlink()
    # Those of others cannot be made again.
    others = train_in(tmp_path / "others", drawn, monkeypatch, method="read", files=["a.mat"])
    (tmp_path / "others/p.npz").unlink()
    for command in (("eval", "--run", others), (*detect, others)):
        line = failure(capsys, *command)
        assert f"learned from {tmp_path / 'others/p.npz'}, " in line and "give --proposals" in line
    assert not (others / "proposals.npz").exists()
