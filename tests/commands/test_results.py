"""What a detector finds: on a data set, on files, on very many; and the reports."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.edge_models import write_edge_model
from fastrcnn_engine import bulk, pipeline
from fastrcnn_engine.commands import results
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore, Search, write_proposals
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES, detect_image
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.pipeline import read_log, run_files
from fastrcnn_engine.training import load_checkpoint

from .steps import failure, metrics_of, nothing_is_begun, run


def test_eval_checks_its_threshold_and_device_before_detecting(capsys, trained, monkeypatch):
    monkeypatch.setattr(results, "detect_dataset", lambda *_, **__: pytest.fail("detected"))
    line = failure(capsys, "eval", "--run", trained, "--iou-threshold", "1.5")
    assert "iou_threshold" in line and "1.5" in line
    assert "device is 'gpu'" in failure(capsys, "eval", "--run", trained, "--device", "gpu")


def test_the_end_of_a_log_may_be_cut_off(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"iteration": 2}\n{"iteration": 4}\n{"itera')
    assert read_log(tmp_path / "log.jsonl") == [{"iteration": 2}, {"iteration": 4}]


@pytest.mark.parametrize("line", ["{iteration: 4}", "[4]", "7", '{"loss": 1}', "\xff"])
def test_a_bad_line_of_a_log_is_named_before_the_detection(
    trained, tmp_path, capsys, monkeypatch, line
):
    nothing_is_begun(monkeypatch)
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"iteration": 2}}\n{line}\n{{"iteration": 6}}\n', encoding="latin-1")
    shutil.copy(trained / "checkpoint.pt", tmp_path)
    for command in (("eval", "--run", tmp_path), ("report", tmp_path)):
        assert f"{log}, line 2: not a line of a training log" in failure(capsys, *command)


def test_results_in_the_format_of_voc_are_those_of_the_json(trained):
    found = json.loads((trained / "detections.json").read_text())
    again = {image_id: [] for image_id in found["images"]}
    for name in found["classes"]:
        path = trained / "voc_results" / f"comp4_det_test_{name}.txt"
        for line in path.read_text().splitlines():
            image_id, score, *box = line.split()
            box = [np.float32(x) - np.float32(1) for x in box]  # 1-based in the file
            again[image_id].append((name, np.float32(score), *box))
    for image_id, rows in found["images"].items():
        expected = [(r["class"], np.float32(r["score"]), *np.float32(r["box"])) for r in rows]
        assert [r[:2] for r in sorted(again[image_id])] == [r[:2] for r in sorted(expected)]
        boxes = [np.array([r[2:] for r in sorted(rows)]) for rows in (again[image_id], expected)]
        np.testing.assert_allclose(*boxes, atol=4e-5)  # the 1 that is added and taken away
    assert sum(map(len, again.values())) > 0


def test_results_in_the_format_of_voc_have_a_file_for_each_class(tmp_path):
    classes = ("a/b", "a_b", "a/b_", "/", "c")
    dataset = Dataset(classes, [], [], tmp_path, "own/test")
    count = len(classes)
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    rows, labels = np.arange(count), np.arange(1, count + 1)
    found = {"image": Detections(boxes, np.ones(count, np.float32), labels, rows)}
    pipeline.write_voc_results(tmp_path, dataset, found)
    first = {p.name: float(p.read_text().split()[2]) for p in tmp_path.glob("comp4_det_own_test_*")}
    assert sorted(first.values()) == [1, 5, 9, 13, 17]
    assert first["comp4_det_own_test_a_b.txt"] == 5, "the name is its own"


def test_eval_agrees_with_the_test_of_the_training(trained, capsys):
    run("eval", "--run", trained, "--split", "test", "--metric", "11point")
    before = json.loads((trained / "metrics.json").read_text())
    after = json.loads((trained / "eval-test" / "metrics.json").read_text())
    assert after["mAP"] == before["mAP_11point"] and after["mAP_area"] == before["mAP_area"]
    assert after["metric"] == "11point"
    assert (trained / "eval-test" / "report.html").is_file()
    text = capsys.readouterr().out
    assert "AP, area" in text and "AP, 11 points" in text


def test_eval_on_another_data_set_does_not_use_the_proposals_of_the_first(trained, tmp_path):
    other = write_demo_set(tmp_path / "other", seed=2, train=1, test=1)  # the ids are the same
    run("eval", "--checkpoint", trained / "checkpoint.pt", "--data", other, "--split", "test")
    out = trained / "eval-other-test"
    assert json.loads((out / "metrics.json").read_text())["images"] == 1
    first, second = ProposalStore(trained / "proposals.npz"), ProposalStore(out / "proposals.npz")
    assert first.settings == second.settings
    assert not np.array_equal(first["test_0000"], second["test_0000"])


def test_a_test_replaces_no_other_test_of_the_run(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("eval-*", "metrics.json"))
    shutil.copy(folder / "checkpoint.pt", folder / "best.pt")
    same = ("eval", "--split", "test", "--proposals", folder / "proposals.npz")
    own, best = (*same, "--run", folder), (*same, "--checkpoint", folder / "best.pt")
    coco = (*own, "--metric", "coco")
    low = (*own, "--detection.score-threshold", "0.001")
    for command in (own, coco, own, low, best, coco):
        run(*command)
    names = {"eval-test": "area", "eval-test-2": "coco", "eval-test-3": "area",
             "best-eval-test": "area"}  # fmt: skip
    assert {path.name for path in folder.glob("*eval*")} == set(names)
    for name, metric in names.items():
        assert metrics_of(folder / name)["metric"] == metric
    used = metrics_of(folder / "eval-test-3")["settings"]["Detection"]
    assert used["score_threshold"] == 0.001
    # That of best.pt is none of the run; the newest of the others counts.
    assert run_files(folder).metrics == metrics_of(folder / "eval-test-2")


def test_the_protocol_of_the_paper(capsys, trained, tmp_path):
    run("eval", "--run", trained, "--out", tmp_path / "paper", "--detection.protocol", "paper")
    used = metrics_of(tmp_path / "paper")["settings"]["Detection"]
    assert used["protocol"] == "paper" and "score_threshold" not in used
    found = json.loads((tmp_path / "paper" / "detections.json").read_text())["images"]
    # At most 40 x 2 images of each class in all.
    everything = [one for image in found.values() for one in image]
    for name in ("cross", "disc", "ring", "square", "star", "triangle"):
        assert 0 < sum(one["class"] == name for one in everything) <= 80
    line = failure(
        capsys, "eval", "--run", trained, "--detection.protocol", "paper",
        "--detection.score-threshold", "0.2",
    )  # fmt: skip
    assert "score_threshold is 0.2, but the paper's protocol has none" in line
    assert "--detection.protocol" in failure(
        capsys, "eval", "--run", trained, "--detection.protocol", "voc"
    )


def test_detect_writes_boxes_and_pictures(trained, drawn, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    source = drawn / "JPEGImages" / "test_0000.jpg"
    Image.open(source).save(folder / "test_0000.png")
    out = tmp_path / "out"
    run("detect", source, folder, "--checkpoint", trained, "--out", out, "--score", "0")
    found = json.loads((out / "detections.json").read_text())["images"]
    assert set(found) == {str(source), str(folder / "test_0000.png")}
    # Two images of one name have a picture each, with boxes in it.
    pictures = sorted(path.name for path in out.glob("*.jpg"))
    assert pictures == ["test_0000-detections-2.jpg", "test_0000-detections.jpg"]
    assert all(found.values()), "a threshold of 0 leaves no image without detections"
    drawn_picture = out / "test_0000-detections.jpg"
    before, after = (np.asarray(Image.open(p)).astype(int) for p in (source, drawn_picture))
    assert before.shape == after.shape and np.abs(before - after).max() > 100
    assert "detections.json" in capsys.readouterr().out


def test_detect_writes_over_no_image_and_leaves_out_what_it_drew(trained, drawn, tmp_path):
    # A photo may have the name of a drawn picture; the second run finds the pictures of the first.
    photos = [tmp_path / "photo.jpg", tmp_path / "photo-detections.jpg"]
    for photo in photos:
        photo.write_bytes((drawn / "JPEGImages" / "test_0000.jpg").read_bytes())
    before = [photo.read_bytes() for photo in photos]
    for many in ((), (), ("--many",)):
        run("detect", tmp_path, "--checkpoint", trained, "--out", tmp_path, "--score", "0", *many)
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


@pytest.fixture
def retrained(trained, tmp_path):
    """A copy of the run whose proposals are made anew; returns the function that makes them.

    Its checkpoint is an older one, which does not say how they were made.
    """
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("eval-*", "proposals.npz"))
    content = load_checkpoint(folder / "checkpoint.pt")
    content["config"]["proposals"] = str(folder / "proposals.npz")
    del content["proposals_made_with"]
    torch.save(content, folder / "checkpoint.pt")

    def made(settings):
        path = folder / "proposals.npz"
        path.unlink(missing_ok=True)
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

    for place in (bulk, pipeline):
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
    run(*asked, retrained({"method": "read", "files": ["a.mat"]}))
    text = " ".join(capsys.readouterr().out.split())
    assert "does not say how to make more of its kind; images are searched by selective-s" in text
    assert "does not say" not in text.replace("does not say", "", 1)
    run(*asked, retrained(None))  # a file of somebody's own, or of an old version
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("does not say how it was made; images are searched by selective-search") == 1
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


def as_older(checkpoint):
    """Rewrites a checkpoint as one was that keeps paths as they were given."""
    content = load_checkpoint(checkpoint)
    del content["proposals_made_with"]
    content["config"] |= {"data": "data", "proposals": "p.npz", "output": "runs/a"}
    torch.save(content, checkpoint)


@pytest.mark.parametrize("older", [False, True])
def test_detect_and_eval_find_what_was_trained_on_from_any_folder(
    older, drawn, tmp_path, monkeypatch, capsys
):
    home = tmp_path / "home"
    image = drawn / "JPEGImages/test_0000.jpg"
    folder = train_in(home, drawn, monkeypatch)
    if older:
        as_older(folder / "checkpoint.pt")

    def found(run_of):
        out = tmp_path / "found"
        run("detect", image, "--checkpoint", run_of, "--out", out, "--score", "0")
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
    assert "searched by" not in capsys.readouterr().out


def test_proposals_that_are_missing_are_told(drawn, tmp_path, monkeypatch, capsys):
    image = drawn / "JPEGImages/test_0000.jpg"
    detect = ("detect", image, "--out", tmp_path / "found", "--checkpoint")
    folder = train_in(tmp_path / "home", drawn, monkeypatch)
    (tmp_path / "home/p.npz").unlink()
    run(*detect, folder)  # the checkpoint says how they were made
    run("eval", "--run", folder)
    assert ProposalStore(folder / "proposals.npz").settings == Search("grid", max_boxes=9).to_dict()
    (folder / "proposals.npz").unlink()
    assert "searched by" not in capsys.readouterr().out
    as_older(folder / "checkpoint.pt")
    run(*detect, folder)
    text = " ".join(capsys.readouterr().out.split())
    assert "p.npz is not there, and this older checkpoint does not say how it was made" in text
    line = failure(capsys, "eval", "--run", folder)
    assert "p.npz: the proposals of the training are not there" in line and "--proposals" in line
    assert not (folder / "proposals.npz").exists()
    # Nor can those of others be made again.
    others = train_in(tmp_path / "others", drawn, monkeypatch, method="read", files=["a.mat"])
    (tmp_path / "others/p.npz").unlink()
    assert "give --proposals" in failure(capsys, "eval", "--run", others)
    run(*detect, others)
    assert "does not say how to make more of its kind" in capsys.readouterr().out


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
               "--score", 0, "--out", out)  # fmt: skip
    run_stopped(3, monkeypatch, *command)
    path = out / "detections.jsonl"
    before = path.read_bytes()
    assert before.count(b"\n") == 4  # two images, and two that cannot be read
    path.write_bytes(before + b'{"image": "cut o')
    capsys.readouterr()
    run(*command)
    assert path.read_bytes().startswith(before)
    text = " ".join(capsys.readouterr().out.split())
    assert "images: 4 done" in text and "4 done before, 0 could not be read" in text
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # images[0] is named twice and has one line; nothing but the lines and their origin was written.
    named = [str(bad), str(images[0]), str(tmp_path / "absent.jpg"), *map(str, images[1:])]
    assert [line["image"] for line in lines] == named
    assert "bad.jpg: not readable" in lines[0]["error"] and "no such" in lines[2]["error"]
    assert {one.name for one in out.iterdir()} == {
        "detections.jsonl", "detections.jsonl.made-by.json",
    }  # fmt: skip
    run("detect", images[0], "--checkpoint", trained, "--score", 0, "--out", tmp_path / "one")
    one = json.loads((tmp_path / "one" / "detections.json").read_text())["images"]
    assert one[str(images[0])] == lines[1]["detections"] != []

    parts = []
    for part in ("1/2", "2/2"):
        run(*command[:-1], tmp_path / "parts", "--shard", part)
        text = (tmp_path / f"parts/detections.{part[0]}-of-2.jsonl").read_text()
        parts += [json.loads(line) for line in text.splitlines()]
    assert len(list((tmp_path / "parts").iterdir())) == 3  # and what made them
    assert len(parts) == 8 and {p["image"] for p in parts} == set(named)
    assert "shard is '3/2'" in failure(capsys, *command, "--shard", "3/2")
    assert "only --many" in failure(capsys, "detect", folder, "--shard", "1/2")
    path.write_text('{"other": 1}\n')
    assert "line 1: not a line of detections" in failure(capsys, *command)
    assert path.read_text() == '{"other": 1}\n'


def test_lists_of_images_are_read_like_splits(drawn, trained, tmp_path, capsys):
    images, listed = sorted((drawn / "JPEGImages").glob("test*.jpg")), tmp_path / "list.txt"
    text = "".join(f"  {path}\t\r\n\r\n" for path in images)
    listed.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert pipeline.expand_folders([listed], lists=True) == images
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
    command = ("detect", folder, bad, "--many", "--checkpoint", trained, "--score", 0, "--out", out)
    run(*command)
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["image"])
    assert len(lines) == 7 and any(line.get("detections") for line in lines)

    parquet = (*command, "--format", "parquet")
    killed = (
        "import os, sys; from fastrcnn_engine import bulk, cli; bulk.PART_IMAGES = 2\n"
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
    run(*parquet)
    text = " ".join(capsys.readouterr().out.split())
    assert "images: 2 done" in text and "5 done before, 1 could not be read" in text
    assert (parts / "part-00000.parquet").read_bytes() == before
    assert rows_of(parts) == lines
    run(*parquet)
    assert len(list(parts.glob("*.parquet"))) == 4, "nothing was left to write"

    shards = (*command[:-1], tmp_path / "shared", "--format", "parquet", "--shard")
    monkeypatch.setattr(bulk, "PART_SECONDS", -1)  # each row is late
    for part in ("1/2", "2/2", "2/2"):
        run(*shards, part)
    assert rows_of(tmp_path / "shared" / "detections") == lines
    names = {path.name for path in (tmp_path / "shared" / "detections").iterdir()}
    assert len(names) == 7 and {"part-00003.1-of-2.parquet", "part-00002.2-of-2.parquet"} <= names

    # However a job is cut: what one part has detected no other does again.
    capsys.readouterr()
    run(*command[:-1], tmp_path / "shared", "--format", "parquet")
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

    (parts / "part-00002.parquet").write_text("other")
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
    command = (*find, trained, "--score", "0.03")
    run(*command, "--shard", "2/2")  # has no image: another start of the job changes nothing
    run(*command, "--shard", "1/2")
    note = out / ("detections.jsonl.made-by.json" if kind == "jsonl" else "detections.made-by.json")
    kept = json.loads(note.read_text())
    assert kept["score_threshold"] == 0.03 and kept["search"]["short_side"] == 80
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for changed, says in (
        ((*find, other, "--score", "0.03"), "checkpoint_crc32 was"),
        ((*find, trained, "--score", "0.5"), "score_threshold was 0.03, is 0.5; give another"),
        ((*command, "--short-side", 96), "short_side was 120, is 96"),
        ((*command, "--mode", "fast"), "search was"),
        ((*command, "--score", "0.5", "--shard", "2/2"), "score_threshold was 0.03, is 0.5"),
    ):
        line = failure(capsys, *changed)
        assert says in line and note.name in line
    assert all(path.read_bytes() == content for path, content in before.items())
    copy = tmp_path / "elsewhere.pt"  # the same checkpoint
    copy.write_bytes((trained / "checkpoint.pt").read_bytes())
    shutil.copy(trained / "proposals.npz", tmp_path)
    run(*find, copy, "--score", "0.03", "--shard", "1/2")
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done, 1 done before" in text and "older version" not in text

    note.unlink()
    for _ in range(2):  # each time: what is new does not make them any better known
        run(*command[:-1], "0.5", "--shard", "1/2")
        text = " ".join(capsys.readouterr().out.split())
        assert "older version" in text and "0 done, 1 done before" in text


@pytest.mark.parametrize("kind", ["softmax", "svm"])
def test_the_report_shows_mistakes_and_what_was_pooled(
    trained, drawn, tmp_path, monkeypatch, kind
):
    """By either classifier, with an image pyramid, and the same in every run."""
    checkpoint = trained / "checkpoint.pt"
    if kind == "svm":
        run("svm", "--checkpoint", trained, "--out", tmp_path / "svm")
        checkpoint = tmp_path / "svm" / "checkpoint.pt"
    # Nothing is certain after four iterations.
    monkeypatch.setitem(CONFIDENT_SCORES, kind, -9.0)
    pages = []
    for name in ("one", "two"):
        run("eval", "--checkpoint", checkpoint, "--data", drawn, "--split",
            "test", "--out", tmp_path / name, "--proposals", trained / "proposals.npz",
            "--short-side", 240, 480, "--max-side", 700)  # fmt: skip
        page = (tmp_path / name / "report.html").read_text()
        pages.append([part for part in page.split("<section>") if "<figure" in part])
    assert pages[0] == pages[1]
    wrong, pooled = (
        next(part for part in pages[0] if f"<h2>{heading}" in part)
        for heading in ("False positives by falling score", "What RoI pooling took")
    )
    total = sum(
        sum(one.values())
        for one in metrics_of(tmp_path / "one")["mistakes"]["false_positives"].values()
    )
    assert total > 24 and 24 <= wrong.count("<figure") <= 24 + 3 * 6
    scores = [float(score) for score in re.findall(r"<b>\w+ (-?[\d.]+)</b>", wrong)]
    assert scores == sorted(scores, reverse=True) and len(scores) == wrong.count("<figure")
    assert 4 <= pooled.count("<figure") <= 12
    assert pooled.count(" maxima") > pooled.count("<figure")
    assert set(re.findall(r"short side (\d+)", pooled)) <= {"240", "480"}
