"""eval and report: what a test reads, replaces and writes."""

from __future__ import annotations

import json
import re
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from data.coco_files import coco_copy
from fastrcnn_engine.commands import evaluation, stages
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.report.runs import read_log, run_files
from fastrcnn_engine.training import load_checkpoint

from .steps import failure, metrics_of, nothing_is_begun, run


def test_eval_checks_its_threshold_and_device_before_detecting(capsys, trained, monkeypatch):
    monkeypatch.setattr(evaluation, "detect_dataset", lambda *_, **__: pytest.fail("detected"))
    line = failure(capsys, "eval", "--run", trained, "--iou-threshold", "1.5")
    assert "iou_threshold" in line and "1.5" in line
    assert "device is 'gpu'" in failure(capsys, "eval", "--run", trained, "--device", "gpu")


def test_the_end_of_a_log_may_be_cut_off(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"iteration": 2}\n\n{"iteration": 4, "bad_images": ["a"]}\n{"itera'
    )
    rows = read_log(tmp_path / "log.jsonl")
    assert rows == [{"iteration": 2}, {"iteration": 4, "bad_images": ["a"]}]


def test_a_test_set_without_annotations_gets_files_of_results(trained, drawn, tmp_path, capsys):
    """As those of VOC10, VOC12 and COCO's test-dev are, for a server that knows the objects."""
    for name in ("JPEGImages", "ImageSets"):
        shutil.copytree(drawn / name, tmp_path / "secret" / name)
    proposals = tmp_path / "secret.npz"
    run("proposals", "--data", tmp_path / "secret", "--split", "test", "--out", proposals,
        "--short-side", 80)  # fmt: skip
    run("eval", "--run", trained, "--data", tmp_path / "secret", "--out", tmp_path / "out",
        "--proposals", proposals)  # fmt: skip
    text = capsys.readouterr().out
    assert "mAP (area): n/a" in text and "no image of test has objects" in text
    assert f"results for a server: {tmp_path / 'out' / 'voc_results'}" in text
    results = [tmp_path / "out" / "voc_results", trained / "voc_results"]
    names = sorted(path.name for path in results[1].iterdir())
    assert any((results[1] / name).read_text() for name in names)
    for name in names:
        assert (results[0] / name).read_text() == (results[1] / name).read_text()
    assert "no image of test has objects" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "detections.jpg").exists()  # of images with objects

    coco_copy(drawn, tmp_path / "coco", ["test"], crowds=False)
    file = tmp_path / "coco" / "annotations" / "instances_test.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    run("eval", "--run", trained, "--data", tmp_path / "coco", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "coco_results.json").read_text())
    text = capsys.readouterr().out
    assert f"results for a server: {tmp_path / 'out' / 'coco_results.json'}" in text


def test_annotations_that_were_lost_are_no_secret(trained, drawn, tmp_path, capsys, monkeypatch):
    nothing_is_begun(monkeypatch)
    data = shutil.copytree(drawn, tmp_path / "data")
    shutil.rmtree(data / "Annotations")
    content = load_checkpoint(trained / "checkpoint.pt")
    content["config"]["data"] = str(data)
    torch.save(content, tmp_path / "checkpoint.pt")
    lost = f"{data / 'Annotations'}: no such folder; a VOC data set has one"
    assert lost in failure(capsys, "eval", "--run", tmp_path)  # what it learned from
    (data / "Annotations").symlink_to(tmp_path / "absent")
    assert lost in failure(capsys, "eval", "--run", trained, "--data", data)


@pytest.mark.parametrize(
    "line",
    ["{iteration: 4}", "[4]", "7", '{"loss": 1}', "\xff", '{"iteration": "4"}',
     '{"iteration": 4, "loss": "x"}', '{"iteration": 4, "loss": [1]}', 10**5 * "["],
)  # fmt: skip
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
    stages.write_voc_results(tmp_path, dataset, found)
    first = {p.name: float(p.read_text().split()[2]) for p in tmp_path.glob("comp4_det_own_test_*")}
    assert sorted(first.values()) == [1, 5, 9, 13, 17]
    assert first["comp4_det_own_test_a_b.txt"] == 5, "the name is its own"


def test_a_class_of_a_long_name_has_a_file_in_the_format_of_voc_too(tmp_path):
    classes = ("ü" * 300, "ü" * 301, "u" + "ü" * 300, "/" * 300, "x" * 236, "x" * 235 + "y")
    dataset = Dataset(classes, [], [], tmp_path, "test")
    stages.write_voc_results(tmp_path, dataset, {})
    names = {p.name.removeprefix("comp4_det_test_") for p in tmp_path.iterdir()}
    cut = ["ü" * 118, "ü" * 117 + "_", "u" + "ü" * 117, "_" * 236]
    assert names == {f"{name}.txt" for name in [*cut, *classes[4:]]}


def test_eval_agrees_with_the_test_of_the_training(trained, drawn, capsys):
    same = drawn / ".." / drawn.name  # what it was trained on, by another way
    run("eval", "--run", trained, "--data", same, "--split", "test", "--metric", "11point")
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


def test_an_image_that_has_changed_since_the_training_is_searched_again(trained, drawn, tmp_path):
    picture = drawn / "JPEGImages" / "test_0000.jpg"
    before = picture.read_bytes()
    copy = shutil.copytree(trained, tmp_path / "copy")
    try:
        with Image.open(picture) as image:
            turned = image.rotate(90, expand=True)
        turned.save(picture)
        run("eval", "--run", copy, "--split", "test")
    finally:
        picture.write_bytes(before)
    first, second = ProposalStore(trained / "proposals.npz"), ProposalStore(copy / "proposals.npz")
    assert not np.array_equal(first["test_0000"], second["test_0000"])
    assert (second["test_0000"][:, 2:] < turned.size).all()
    assert np.array_equal(first["test_0001"], second["test_0001"])


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_an_image_that_cannot_be_read_is_named_with_what_to_do(
    layout, trained, drawn, tmp_path, capsys
):
    """At each place where it can be found out: reading the data, searching, detecting."""
    data = tmp_path / "data"
    if layout == "voc":
        shutil.copytree(drawn, data)
        listed, image = data / "ImageSets/Main/test.txt", data / "JPEGImages/test_0001.jpg"
    else:
        coco_copy(drawn, data, ["test"], crowds=False)
        listed, image = data / "annotations/instances_test.json", data / "test/test_0001.jpg"
    command = ("eval", "--checkpoint", trained / "checkpoint.pt", "--data", data, "--out", tmp_path)
    whole = image.read_bytes()
    says = f"AP counts every image of test: mend what is wrong, or take the image out of {listed};"

    def told() -> str:
        line = failure(capsys, *command)
        assert says in line and line.count(says) == 1
        return line

    image.write_bytes(b"no image")
    assert f"{image}: not readable as an image" in told()
    image.write_bytes(whole[:2000])  # its size can be read
    assert f"{image}: not readable as an image" in told()
    image.write_bytes(whole)
    run(*command)  # keeps the proposals
    image.write_bytes(whole[:2000])
    assert f"{image}: not readable as an image" in told()
    if layout == "voc":
        image.unlink()
        other = data / "Annotations/test_0000.xml"
        other.write_text(other.read_text().replace("<name>", "<name>un", 1))
        assert "class 'un" in (line := told()) and "(and 1 more); AP counts" in line
        assert line.endswith("; check-data names all faults\n")
        shutil.rmtree(data / "Annotations")  # a set that check-data does not take
        assert "check-data" not in failure(capsys, *command)
    # Other mistakes are what they were.
    assert "AP counts" not in failure(capsys, *command, "--split", "absent")


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


def test_the_same_command_in_another_directory_is_about_other_data(
    trained, drawn, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained / "checkpoint.pt", folder)
    for place in ("one", "two", "one"):
        data = tmp_path / place / "photos"
        if not data.exists():
            shutil.copytree(drawn, data)
        monkeypatch.chdir(data.parent)
        run("eval", "--run", folder, "--data", "photos", "--split", "test")
    tests = {path.name: metrics_of(path) for path in folder.glob("eval-*")}
    names = {"eval-photos-test": "one", "eval-photos-test-2": "two"}
    assert tests.keys() == names.keys()
    for name, place in names.items():
        data = tests[name]["settings"]["Evaluation"]["data"]
        assert data == str(tmp_path / place / "photos")


def test_the_protocol_of_the_paper_at_another_threshold(capsys, trained, tmp_path, monkeypatch):
    drawn_at = Mock(wraps=stages.drawn_at)
    monkeypatch.setattr(stages, "drawn_at", drawn_at)
    run("eval", "--run", trained, "--out", tmp_path / "paper", "--detection.protocol", "paper",
        "--iou-threshold", "0.75")  # fmt: skip
    metrics = metrics_of(tmp_path / "paper")
    assert metrics["iou_threshold"] == metrics["settings"]["Evaluation"]["iou_threshold"] == 0.75
    assert drawn_at.call_args.kwargs["iou_threshold"] == 0.75  # pictures and mistakes
    assert "<h2>Training" in (tmp_path / "paper" / "report.html").read_text()  # as of the log
    used = metrics["settings"]["Detection"]
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
