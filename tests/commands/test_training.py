"""Training from images to a report, its folder, resuming, and the demo."""

from __future__ import annotations

import json
import re
import shutil
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from data.coco_files import coco_copy
from fastrcnn_engine.commands import plain_console, training
from fastrcnn_engine.commands.stages import search_datasets
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.evaluation.coco import NUMBERS
from fastrcnn_engine.files import alone_in
from fastrcnn_engine.models.pretrained import LayerChange
from fastrcnn_engine.report.runs import read_log
from fastrcnn_engine.training import TrainResult, loop, resume
from fastrcnn_engine.training.interrupt import Stopped

from .steps import failure, metrics_of, nothing_is_begun, run


def test_a_missing_proposal_is_an_error_that_names_the_image(capsys, drawn, tmp_path):
    proposals = tmp_path / "test.npz"
    run("proposals", "--data", drawn, "--split", "test", "--out", proposals, "--short-side", 80)
    line = failure(
        capsys, "train", "--data", drawn, "--split", "train", "--network", "tiny",
        "--proposals", proposals, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "train_0000" in line and "test.npz" in line


def test_a_proposal_that_is_no_number_is_an_error_before_the_training(
    capsys, drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "run_training", lambda *_, **__: pytest.fail("trained"))
    boxes = {r.image_id: np.float32([[0, 0, 99, 99]] * 3) for split in ("train", "test")
             for r in load_dataset(drawn, split).records}  # fmt: skip
    boxes["test_0001"][2, 1] = np.nan
    np.savez(tmp_path / "p.npz", **boxes)
    line = failure(
        capsys, "train", "--data", drawn, "--split", "train", "--test-split", "test",
        "--network", "tiny", "--proposals", tmp_path / "p.npz", "--out", tmp_path / "run",
    )  # fmt: skip
    assert "p.npz: proposals of image 'test_0001', row 2: expected finite" in line


def test_train_looks_at_everything_before_the_search(capsys, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "search_datasets", lambda *_: pytest.fail("searched"))
    same = ("train", "--data", drawn, "--split", "train", "--out", tmp_path / "run")
    tiny = (*same, "--network", "tiny")
    assert "device is 'gpu'" in failure(capsys, *tiny, "--device", "gpu")
    assert "absent.pth does not exist" in failure(capsys, *same, "--weights", "absent.pth")
    assert "tiny takes none" in failure(capsys, *tiny, "--weights", "absent.pth")
    assert "it must be none for tiny" in failure(capsys, *tiny, "--freeze-to", "conv1")
    assert "--freeze-to" in failure(capsys, *same, "--freeze-to", "conv1_1")
    line = failure(capsys, *tiny, "--resume")
    assert "resume" in line and "checkpoint.pt does not exist" in line


def test_given_proposals_must_hold_the_test_images_too(capsys, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "run_training", lambda *_, **__: pytest.fail("trained"))
    proposals = tmp_path / "train.npz"
    run("proposals", "--data", drawn, "--split", "train", "--out", proposals, "--short-side", 80)
    line = failure(
        capsys, "train", "--data", drawn, "--split", "train", "--test-split", "test",
        "--network", "tiny", "--proposals", proposals, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "test_0000" in line and "train.npz" in line


def test_a_demo_is_one_process_s_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in failure(capsys, "demo", "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_demo_deletes_nothing_but_a_demo(capsys, trained, tmp_path):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    assert str(trained) in failure(capsys, "demo", "--out", trained)
    assert all(path.read_bytes() == content for path, content in before.items())
    for name in ("checkpoint.pt", "proposals.npz"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / name).write_text("mine")
        assert name in failure(capsys, "demo", "--out", tmp_path / name)
        assert (tmp_path / name / name).read_text() == "mine"


def test_a_run_at_work_is_left_alone(capsys, drawn, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    train = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", out)
    training.check_idle(out)
    assert not out.exists()
    write_demo_set(out / "drawn", seed=1, train=1, test=1)
    (out / "log.jsonl").write_text("{}")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    nothing_is_begun(monkeypatch)
    with alone_in(out):
        for command in (("demo", "--out", out, "--seed", 2), train):
            assert f"another run is at work in {out}; wait" in failure(capsys, *command)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_that_ended_during_the_search_is_not_overwritten(
    capsys, drawn, tmp_path, monkeypatch
):
    def search(*arguments, **options):
        (tmp_path / "checkpoint.pt").write_text("mine")
        return search_datasets(*arguments, **options)

    monkeypatch.setattr(training, "search_datasets", search)
    line = failure(
        capsys, "train", "--data", drawn, "--network", "tiny", "--split", "train",
        "--out", tmp_path, "--search.short-side", 80,
    )  # fmt: skip
    assert "holds the checkpoint of a run already" in line
    assert (tmp_path / "checkpoint.pt").read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["{}", "[]", "not JSON", '{"training": {"data": 1}}', 10**5 * "["]
)
def test_a_config_of_another_program_is_refused(capsys, drawn, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    same = ("train", "--data", drawn, "--network", "tiny", "--split", "train")
    for arguments in ((*same, "--out", tmp_path), ("demo", "--out", tmp_path)):
        line = failure(capsys, *arguments)
        assert str(tmp_path / "config.json") in line and "another --out" in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_tells_how_to_go_on(number, code, capsys, drawn, trained, tmp_path, monkeypatch):
    def stop(config, dataset, on_start):
        raise Stopped("resume goes on from iteration 2", number)

    monkeypatch.setattr(training, "run_training", stop)
    with pytest.raises(SystemExit) as end:
        run(
            "train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", tmp_path,
            "--proposals", trained / "proposals.npz",
        )  # fmt: skip
    assert end.value.code == code
    assert "stopped; --resume goes on from iteration 2" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(capsys, trained, drawn, tmp_path):
    same = ("train", "--data", drawn, "--network", "tiny", "--split", "train")
    line = failure(capsys, *same, "--out", trained)
    assert str(trained) in line and "--resume" in line
    # A folder with the beginnings of a run on other images, whose proposals must not be used.
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    (tmp_path / "data").mkdir()
    line = failure(capsys, *same[:1], "--data", tmp_path / "data", *same[3:], "--out", tmp_path)
    assert str(drawn) in line


def test_train_writes_a_run_and_its_test(trained):
    for name in ("checkpoint.pt", "log.jsonl", "config.json", "proposals.npz", "metrics.json",
                 "detections.json", "detections.jpg", "report.html"):  # fmt: skip
        assert (trained / name).stat().st_size > 0, name
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0.0 <= metrics["mAP"] <= 1.0 and metrics["images"] == 2
    assert set(metrics["seconds"]) >= {"proposals", "training", "detection", "total"}
    seconds = dict(metrics["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    boxes = metrics["settings"]["Proposals"]["boxes per image"]
    assert boxes == round(metrics["proposals"]["mean_boxes"], 1) > 0
    page = (trained / "report.html").read_text()
    assert "of the objects proposed, IoU 0.7" in page and "<h2>Training" in page
    assert metrics["seed"] == 3 and metrics["versions"]["torch"]
    assert set(metrics["classes"]) == {"cross", "disc", "ring", "square", "star", "triangle"}
    config = json.loads((trained / "config.json").read_text())
    assert config["training"]["iterations"] == 4 and config["search"]["short_side"] == 80
    found = json.loads((trained / "detections.json").read_text())
    assert set(found["images"]) == {"test_0000", "test_0001"}
    for one in found["images"]["test_0000"]:
        x1, y1, x2, y2 = one["box"]
        assert one["class"] in found["classes"] and 0 < one["score"] <= 1
        assert 0 <= x1 <= x2 <= 319 and 0 <= y1 <= y2 <= 239
    mistakes = metrics["mistakes"]
    assert mistakes["score"] == 0.5 and len(mistakes["confusion"]) == 7
    objects = sum(one["ground_truths"] for one in metrics["classes"].values())
    assert sum(map(sum, mistakes["confusion"][:-1])) == objects > 0


def test_coco_data_trains_and_tests_like_the_same_in_voc(drawn, trained, tmp_path, capsys):
    data = coco_copy(drawn, tmp_path / "copy", ["train", "test"], crowds=False)
    out = tmp_path / "run"
    run(
        "train", "--data", data, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out, "--iterations", 4, "--short-side", 120, "--log-every", 2,
        "--search.short-side", 80, "--metric", "coco",
    )  # fmt: skip
    # The same records: the same losses, weights and boxes.
    for name in ("loss", "loss_cls", "loss_box", "foreground"):
        rows = [[row[name] for row in read_log(f / "log.jsonl")] for f in (trained, out)]
        assert rows[0] == rows[1], name
    first, second = (
        json.loads((folder / "detections.json").read_text())["images"] for folder in (trained, out)
    )
    assert list(second) == ["test/7", "test/10"]
    assert list(first.values()) == list(second.values())

    text = capsys.readouterr().out
    metrics = metrics_of(out)
    assert metrics["metric"] == "coco" and metrics["mAP"] == metrics["coco"]["AP"]
    for name in NUMBERS:
        assert metrics["coco"][name] is None or 0 <= metrics["coco"][name] <= 1
        assert re.search(rf"^ *{name} +(n/a|[\d.]+)  ", text, re.MULTILINE), name
    assert metrics["classes"]["disc"]["AP"] == metrics["coco"]["classes"]["disc"]["AP"]
    page = (out / "report.html").read_text()
    assert "AP at IoU 0.50 to 0.95" in page and "AR100: average recall" in page
    # In COCO's format and with its ids, every detection there is.
    rows = json.loads((out / "coco_results.json").read_text())
    assert len(rows) == sum(map(len, second.values()))
    for row, one in zip(rows, second["test/7"], strict=False):
        assert row["image_id"] == 7 and row["score"] == one["score"]
        assert row["category_id"] == 10 * (1 + list(metrics["classes"]).index(one["class"]))
        x, y, w, h = row["bbox"]
        assert [x, y, x + w - 1, y + h - 1] == pytest.approx(one["box"])

    # Either metric of either data; a model goes by the names of its classes.
    run("eval", "--run", out, "--out", tmp_path / "voc-metric")
    assert (tmp_path / "voc-metric" / "coco_results.json").read_text() == json.dumps(rows) + "\n"
    run("eval", "--run", trained, "--out", tmp_path / "voc-data", "--metric", "coco")
    assert not (tmp_path / "voc-data" / "coco_results.json").exists()
    assert (tmp_path / "voc-data" / "voc_results").is_dir() and not (out / "voc_results").exists()
    assert metrics_of(tmp_path / "voc-data")["metric"] == "coco"
    run("svm", "--checkpoint", out, "--out", tmp_path / "svm")


def test_several_scales_travel_from_training_to_test_and_can_be_replaced(
    drawn, trained, tmp_path, capsys
):
    out = tmp_path / "run"
    run(
        "train", "--data", drawn, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out, "--iterations", 2, "--short-side", 96, 120, 160, "--max-side", 200,
        "--proposals", trained / "proposals.npz", "--val-split", "test", "--val-every", 2,
    )  # fmt: skip
    text = capsys.readouterr().out
    assert f"best on test: {out / 'best.pt'}, mAP 0." in text and "after iteration 2" in text
    sizes = {"short_side": [96, 120, 160], "max_side": 200}
    used = metrics_of(out)["settings"]["Detection"]
    assert {name: used[name] for name in sizes} == sizes
    assert json.loads((out / "config.json").read_text())["training"]["short_side"] == [96, 120, 160]
    run("eval", "--run", out, "--out", tmp_path / "same")
    assert metrics_of(tmp_path / "same")["mAP_area"] == metrics_of(out)["mAP_area"]
    found = [
        json.loads((folder / "detections.json").read_text())["images"]
        for folder in (out, tmp_path / "same")
    ]
    assert found[0] == found[1]
    # Table 7: one scale or several, whatever the training had.
    run("eval", "--run", out, "--out", tmp_path / "one", "--short-side", 120)
    used = metrics_of(tmp_path / "one")["settings"]["Detection"]
    assert (used["short_side"], used["max_side"]) == (120, 200)
    run("eval", "--run", trained, "--out", tmp_path / "two", "--short-side", 96, 120)
    assert metrics_of(tmp_path / "two")["settings"]["Detection"]["short_side"] == [96, 120]
    source = drawn / "JPEGImages" / "test_0000.jpg"
    run(
        "detect", source, "--checkpoint", out, "--out", tmp_path / "found",
        "--short-side", 96, 240, "--max-side", 320,
    )  # fmt: skip


def test_proposals_that_are_turned_round_are_told(capsys, drawn, trained, tmp_path):
    store = ProposalStore(trained / "proposals.npz")
    boxes = {name: store[name] for name in store}
    boxes["train_0001"] = boxes["train_0001"][:, [2, 3, 0, 1]].copy()
    np.savez(tmp_path / "p.npz", **boxes)
    run(
        "train", "--data", drawn, "--split", "train", "--network", "tiny", "--iterations", 1,
        "--short-side", 120, "--proposals", tmp_path / "p.npz", "--out", tmp_path / "run",
    )  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert "1 image with proposals of x2 < x1 or y2 < y1" in told and "?): train_0001" in told


def test_table_6(capsys, drawn, trained, tmp_path):
    same = (
        "train", "--data", drawn, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--iterations", 2, "--short-side", 120, "--proposals", trained / "proposals.npz",
    )  # fmt: skip
    first, second = tmp_path / "classification", tmp_path / "boxes"
    run(*same, "--out", first, "--tasks", "classification")
    assert metrics_of(first)["settings"]["Detection"]["box_regression"] is False
    run("eval", "--run", trained, "--out", tmp_path / "off", "--detection.no-box-regression")
    assert metrics_of(tmp_path / "off")["settings"]["Detection"]["box_regression"] is False
    line = failure(capsys, *same, "--out", second, "--tasks", "boxes")
    assert "init, its checkpoint, is missing" in line
    line = failure(capsys, *same, "--out", second, "--tasks", "boxes", "--init", tmp_path / "no.pt")
    assert "no.pt does not exist" in line
    run(*same, "--out", second, "--tasks", "boxes", "--init", first)  # the folder of a run
    config = json.loads((second / "config.json").read_text())
    assert config["training"]["init"] == str(first / "checkpoint.pt")
    assert metrics_of(second)["settings"]["Detection"]["box_regression"] is True
    # The scores are those of the first stage, on boxes that have moved.
    scores = [
        max(one["score"] for one in json.loads(text)["images"]["test_0000"])
        for text in ((folder / "detections.json").read_text() for folder in (first, second))
    ]
    assert scores[0] == scores[1]


def test_a_network_without_weights_is_told(drawn, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "_train_and_test", lambda *_: None)
    for network, told in (("caffenet", True), ("tiny", False)):
        run("train", "--data", drawn, "--split", "train", "--network", network,
            "--proposals", trained / "proposals.npz", "--out", tmp_path / network)  # fmt: skip
        assert ("starts from random weights" in capsys.readouterr().out) is told


def test_where_the_time_of_a_training_went_and_what_became_of_layers_and_images(tmp_path, capsys):
    trained = TrainResult(
        model=Mock(), checkpoint=tmp_path / "checkpoint.pt", log=tmp_path / "log.jsonl",
        iterations=4, layers=[LayerChange("fc6", "copied", "as it is")], problems=["a"],
        unusable=["b"], bad_images=["c"], best=None,
        seconds={"waiting for data": 0.001, "loss": 0.003},
    )  # fmt: skip
    training._print_training(plain_console(), trained)
    text = " ".join(re.sub(r"[^\w\s:.,%]", "", capsys.readouterr().out).split())
    for words in (
        "fc6: copied, as it is", "1 note on the data it learned from: a",
        "1 image without a usable RoI, not trained on: b",
        "1 image that cannot be read, replaced by others: c",
        "ms % waiting for data 1.0 25.0 loss 3.0 75.0 whole 4.0",
    ):  # fmt: skip
        assert words in text, words


def test_resume_goes_on_from_the_checkpoint(trained, drawn, tmp_path):
    out = tmp_path / "longer"
    out.mkdir()
    for name in ("checkpoint.pt", "log.jsonl", "proposals.npz", "config.json"):
        (out / name).write_bytes((trained / name).read_bytes())
    moved = shutil.copytree(drawn, tmp_path / "moved")
    run(
        "train", "--data", moved, "--network", "tiny", "--split", "train", "--out", out,
        "--iterations", 6, "--short-side", 120, "--log-every", 2,
        "--search.short-side", 80, "--resume",
    )  # fmt: skip
    rows = [json.loads(line)["iteration"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows == [2, 4, 6]
    # A longer run keeps the steps of the first, and config.json says so.
    config = json.loads((out / "config.json").read_text())["training"]
    assert config["learning_rate_steps"] == [3] and config["data"] == str(moved)


def test_a_refused_resume_leaves_the_settings_of_the_run(trained, drawn, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("eval-*"))
    before = (out / "config.json").read_bytes()
    again = ("train", "--config", out / "config.json", "--out", out, "--resume")
    for option, value, told in (
        ("--learning-rate", 0.5, "learning_rate was 0.02, is 0.5"),
        ("--iterations", 3, "iterations is 3, and it has 4 behind it already"),
    ):
        assert told in failure(capsys, *again, option, value)
        assert (out / "config.json").read_bytes() == before
    run(*again)


def test_checkpoint_data_and_proposals_are_read_once(trained, drawn, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("eval-*"))
    loads, hashes = Mock(wraps=torch.load), Mock(wraps=resume.data_fingerprint)
    monkeypatch.setattr(torch, "load", loads)
    for module in (loop, resume):
        monkeypatch.setattr(module, "data_fingerprint", hashes)
    monkeypatch.setattr(loop, "load_dataset", lambda *_, **__: pytest.fail("the command has it"))
    again = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", out,
             "--iterations", 4, "--short-side", 120, "--search.short-side", 80,
             "--resume")  # fmt: skip
    for command in (
        again,  # the steps of its learning rate are in the checkpoint
        ("train", "--config", out / "config.json", "--out", out, "--resume"),
        ("eval", "--run", out),
        ("detect", drawn / "JPEGImages/test_0000.jpg", "--checkpoint", out, "--out", tmp_path),
    ):
        loads.reset_mock()
        run(*command)
        # What is mapped is read where it is looked at; only a training wants the optimiser too.
        whole = [load.kwargs["mmap"] for load in loads.call_args_list].count(False)
        assert whole == (command[0] == "train"), command
    assert hashes.call_count == 2


def test_a_training_that_skips_images_searches_past_them_and_svms_leave_them_out(
    drawn, tmp_path, capsys, monkeypatch
):
    data, out = shutil.copytree(drawn, tmp_path / "data"), tmp_path / "run"
    images = data / "JPEGImages"
    (images / "train_0001.jpg").write_bytes(b"no image")
    (images / "train_0002.jpg").unlink()
    grid = ("--search.method", "grid", "--search.max-boxes", 20)
    command = ("train", "--data", data, "--split", "train", "--test-split", "test", *grid,
               "--network", "tiny", "--iterations", 4, "--short-side", 120, "--out", out,
               "--on-bad-image")  # fmt: skip
    assert "train_000" in failure(capsys, *command, "stop")
    run(*command, "skip")
    text = capsys.readouterr().out
    assert "2 images that cannot be read, replaced by others" in text
    assert re.findall("^proposals, [a-z]+", text, re.M) == ["proposals, train", "proposals, test"]
    run("svm", "--checkpoint", out)
    text = capsys.readouterr().out
    assert "2 images that cannot be read, left out" in text
    assert "train_0001.jpg: not readable" in text and "train_0002.jpg: no such image" in text

    # Those that are tested on are found out before the training.
    monkeypatch.setattr(training, "run_training", lambda *_, **__: pytest.fail("trained"))
    picture = images / "test_0000.jpg"
    picture.write_bytes(picture.read_bytes()[:2000])
    again = failure(capsys, *command, "skip", "--out", tmp_path / "again")
    assert "test_0000.jpg: not readable as an image" in again
    assert "AP counts every image of test: mend what is wrong, or take" in again


def test_notes_on_the_data_are_printed_before_the_work(drawn, tmp_path, capsys, monkeypatch):
    data = coco_copy(drawn, tmp_path / "data", ["train", "test"], crowds=False)
    for name in ("train_0001", "train_0002", "train_0003"):
        (data / "train" / f"{name}.jpg").unlink()
    (data / "test" / "test_0001.jpg").unlink()
    command = ("train", "--data", data, "--network", "tiny", "--out", tmp_path / "run")
    nothing_is_begun(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="went on"):
        run(*command, "--split", "train", "--test-split", "test")
    told = capsys.readouterr().out
    assert told.startswith(
        f"3 of 4 images of instances_train.json have no file in {data / 'train'}, "
        "nor in images/train; training on 1\n"
        f"3 notes on the data of train:\n  {data}/annotations/instances_train.json, image id 10: "
    )
    assert "train_0001.jpg\n  and 2 more\n1 of 2 images of instances_test.json has no fi" in told
    assert "; testing on 1\n1 note on the data of test:\n  " in told
    for option in ("--split", "--test-split", "--val-split"):
        splits = {"--split": "train"} | {option: "absent"}
        line = failure(capsys, *command, *sum(splits.items(), ()))
        assert f"found beside it: test, train; give one of them by {option}\n" in line


def test_images_that_a_training_skips_are_told_before_it(drawn, tmp_path, capsys, monkeypatch):
    data = shutil.copytree(drawn, tmp_path / "data")
    (data / "JPEGImages" / "train_0001.jpg").unlink()
    nothing_is_begun(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="went on"):
        run("train", "--data", data, "--network", "tiny", "--out", tmp_path / "run",
            "--split", "train", "--on-bad-image", "skip")  # fmt: skip
    folder = data / "JPEGImages"
    line = f"1 of 4 images of train.txt has no file in {folder}; training on 3\n1 note on the data"
    assert capsys.readouterr().out.startswith(line)


def test_demo_ends_with_a_report_and_the_seed_decides_the_numbers(tmp_path, capsys):
    def demo(name, seed):
        out = tmp_path / name
        run(
            "demo", "--out", out, "--seed", seed, "--train-images", 2, "--test-images", 2,
            "--iterations", 2,
        )  # fmt: skip
        return out

    out = demo("one", 5)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["seed"] == 5 and "mAP" in metrics
    text = capsys.readouterr().out
    assert "mAP" in text and "report.html" in text and "mean" in text
    page = (out / "report.html").read_text()
    assert "fastrcnn-engine demo" in page and "http://" not in page
    first = (out / "detections.json").read_bytes()
    assert (demo("two", 5) / "detections.json").read_bytes() == first
    # The same folder again with another seed: nothing of the first demo is left to be used.
    assert (demo("one", 6) / "detections.json").read_bytes() != first
    fresh = demo("three", 6)
    assert (fresh / "detections.json").read_bytes() == (out / "detections.json").read_bytes()


def test_a_gpu_that_nobody_uses_is_told(drawn, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "_train_and_test", lambda *_: None)
    build = {"cuda_device": "available"}
    monkeypatch.setattr("fastrcnn_engine.training.device.build_info", lambda: build)
    for there in (False, True):
        counted = {"is_available": there, "device_count": int(there)}
        for name, value in counted.items():
            monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
        run("train", "--data", drawn, "--split", "train", "--network", "tiny",
            "--proposals", trained / "proposals.npz", "--out", tmp_path / str(there))  # fmt: skip
        assert ("a GPU is there: --device cuda would use it" in capsys.readouterr().out) is there
