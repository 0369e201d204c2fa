"""The command line: help, mistakes, and the whole way from images to a report."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from data.coco_files import coco_copy
from data.edge_models import write_edge_model
from fastrcnn_engine import bulk, cli, pipeline
from fastrcnn_engine.commands import results, training
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    compute_proposals,
    edge_boxes,
    write_proposals,
)
from fastrcnn_engine.data.proposals.search import METHODS
from fastrcnn_engine.data.proposals.selective_search import MODES
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.evaluation.coco import NUMBERS
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES, detect_image
from fastrcnn_engine.evaluation.paper_protocol import detect_set
from fastrcnn_engine.models import ranks_of
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.pipeline import read_log, run_files
from fastrcnn_engine.training import load_checkpoint, load_network


def run(*arguments) -> None:
    """One command, as from a shell. Leaves by SystemExit when it fails."""
    cli.main([str(argument) for argument in arguments])


def failure(capsys, *arguments) -> str:
    """The line a mistaken command prints; it must end with exit code 2 and no traceback."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return printed.err + printed.out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A VOC directory of four images to train on and two to test on."""
    return write_demo_set(tmp_path_factory.mktemp("drawn"), seed=1, train=4, test=2)


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory) -> Path:
    """Folder of a run of the train command, tested too."""
    out = tmp_path_factory.mktemp("runs") / "micro"
    run(
        "train", "--data", drawn, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out, "--iterations", 4, "--short-side", 120, "--log-every", 2,
        "--search.short-side", 80,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_documents_every_option(name, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"fastrcnn-engine {name}" in text
    words = " ".join(re.sub("[│|]", " ", text).split())
    options = re.findall(r"^\W{1,3}(--[a-z][\w.-]+)", text, re.MULTILINE)
    assert len(options) >= {"env": 0, "report": 1}.get(name, 5)
    for option in options:
        # A sentence, then the default: an option without a docstring has none.
        help_text = re.search(rf"{option}\b(.*?)\((?:default:|required)", words)[1]
        assert len(re.findall(r"\b[A-Za-z]{2,}\b", help_text)) >= 4, (option, help_text)


def test_help_names_the_paper(capsys):
    with pytest.raises(SystemExit):
        run("train", "--help")
    text = capsys.readouterr().out
    for words in ("paper", "--learning-rate", "0.0005", "--rois-per-batch", "128", "--resume"):
        assert words in text
    # Names of fields and options of other commands, which this one has not.
    assert "output/" not in text and "--max-boxes" not in text


def test_overview_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        run("--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in text
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2


def test_help_and_mistakes_need_no_torch():
    # Importing torch takes seconds; nobody should wait that long for a list of options.
    code = (
        "import sys; from fastrcnn_engine import cli\n"
        "for arguments in (['--help'], ['demo', '--help'], ['nonsense']):\n"
        "    try: cli.main(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("package", ["tyro", "rich"])
def test_a_plain_installation_says_what_is_missing(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['--help']\n"
        "from fastrcnn_engine.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert repr(package) in done.stderr and "fastrcnn_engine[train]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn_engine", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip()[0].isdigit()


def test_env_prints_what_a_bug_report_needs(capsys):
    run("env")
    text = capsys.readouterr().out
    for words in ("fastrcnn_engine:", "python:", "torch:", "numpy:", "compiler:", "cuda:",
                  "cuda_reason:", "cores:", "contrib modules:", "CUDA available:"):  # fmt: skip
        assert words in text


def test_defaults_are_those_of_the_functions():
    # The command line states them again, to document them; they must not drift apart.
    def defaults(function):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
        }

    search, detection = cli.Search(), cli.Detection()
    assert search.workers == defaults(compute_proposals)["workers"]
    fields = dataclasses.asdict(search)
    del fields["workers"]
    assert fields == dataclasses.asdict(Search())
    assert get_args(cli.Method) == METHODS and get_args(cli.Mode) == MODES
    for name in ("score_threshold", "nms_threshold", "max_detections", "box_regression"):
        assert getattr(detection, name) == defaults(detect_image)[name]
    for name in ("nms_threshold", "box_regression"):
        assert getattr(detection, name) == defaults(detect_set)[name]


def test_mistakes_name_what_is_wrong(capsys, drawn, tmp_path):
    assert "nonsense" in failure(capsys, "nonsense")
    assert "--metric" in failure(capsys, "eval", "--metric", "imagenet")
    assert "--no-such-option" in failure(capsys, "demo", "--no-such-option", "1")
    assert "--run or --checkpoint" in failure(capsys, "eval")
    absent = tmp_path / "absent"
    assert str(absent) in failure(capsys, "proposals", "--data", absent)
    assert str(absent) in failure(capsys, "eval", "--checkpoint", absent)
    assert str(absent) in failure(capsys, "detect", absent, "--checkpoint", absent)
    line = failure(capsys, "train", "--data", drawn, "--split", "valley", "--network", "tiny")
    assert "valley" in line and "train" in line
    line = failure(
        capsys, "train", "--data", drawn, "--split", "train", "--network", "tiny",
        "--rois-per-batch", "127", "--out", tmp_path / "run",
    )  # fmt: skip
    assert "rois_per_batch" in line and "127" in line


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
    monkeypatch.setattr(training, "run_training", lambda *_: pytest.fail("trained"))
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
    monkeypatch.setattr(training, "run_training", lambda *_: pytest.fail("trained"))
    proposals = tmp_path / "train.npz"
    run("proposals", "--data", drawn, "--split", "train", "--out", proposals, "--short-side", 80)
    line = failure(
        capsys, "train", "--data", drawn, "--split", "train", "--test-split", "test",
        "--network", "tiny", "--proposals", proposals, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "test_0000" in line and "train.npz" in line


def test_eval_checks_its_threshold_and_device_before_detecting(capsys, trained, monkeypatch):
    monkeypatch.setattr(results, "detect_dataset", lambda *_, **__: pytest.fail("detected"))
    line = failure(capsys, "eval", "--run", trained, "--iou-threshold", "1.5")
    assert "iou_threshold" in line and "1.5" in line
    assert "device is 'gpu'" in failure(capsys, "eval", "--run", trained, "--device", "gpu")


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


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"training": {"data": 1}}'])
def test_a_config_of_another_program_is_refused(capsys, drawn, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    same = ("train", "--data", drawn, "--network", "tiny", "--split", "train")
    for arguments in ((*same, "--out", tmp_path), ("demo", "--out", tmp_path)):
        line = failure(capsys, *arguments)
        assert str(tmp_path / "config.json") in line and "another --out" in line


def test_ctrl_c_tells_how_to_go_on(capsys, drawn, trained, tmp_path, monkeypatch):
    def stop(config):
        raise KeyboardInterrupt("resume goes on from iteration 2")

    monkeypatch.setattr(training, "run_training", stop)
    with pytest.raises(SystemExit) as end:
        run(
            "train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", tmp_path,
            "--proposals", trained / "proposals.npz",
        )  # fmt: skip
    assert end.value.code == 130
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


def test_debug_lets_the_error_through(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("proposals", "--data", tmp_path / "absent", "--debug")


def test_proposals_go_to_a_file_and_are_summed_up(drawn, tmp_path, capsys):
    out = tmp_path / "p.npz"
    run("proposals", "--data", drawn, "--split", "train", "test", "--out", out, "--short-side", 80)
    store = ProposalStore(out)
    assert len(store) == 6 and store["test_0001"].shape[1] == 4
    assert store.settings["short_side"] == 80
    text = capsys.readouterr().out
    assert "recall" in text and "p.npz" in text


def test_a_training_skips_images_that_have_no_proposals_as_they_cannot_be_read(
    drawn, tmp_path, capsys
):
    data = shutil.copytree(drawn, tmp_path / "data")
    (data / "JPEGImages/train_0001.jpg").write_bytes(b"no image")
    (data / "JPEGImages/train_0002.jpg").unlink()
    out = tmp_path / "p.npz"
    command = ("--data", data, "--split", "train")
    with pytest.raises(SystemExit) as end:
        run("proposals", *command, "--out", out, "--method", "grid", "--max-boxes", 20)
    assert end.value.code == 1
    text = capsys.readouterr().out
    assert "2 images that cannot be read, which have no proposals" in text
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
    for part in ("02/10", "10/10"):
        run(*command, "--shard", part)
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
    assert "1 files without names of images for 2 splits" in failure(capsys, *both, test)
    line = failure(capsys, *both, test, train)
    assert "test.mat is about 2 images, train has 4" in line
    line = failure(capsys, *both, train, published("far.mat", one, [[1, 1, 241, 320]]))
    assert "far.mat has boxes outside of image test_0001" in line
    run(*both, train, test)
    store = ProposalStore(out)
    assert len(store) == 6 and store["train_0001"].tolist() == [[1, 0, 21, 10]]
    assert store["test_0001"].tolist() == [[3, 2, 5, 4], [5, 4, 7, 6]]
    assert store.settings == {"method": "read", "files": ["train.mat", "test.mat"]}
    assert "exists already" in failure(capsys, *both, train, test)
    line = failure(capsys, *both, train, test, "--out", tmp_path / "new.npz", "--min-size", 32)
    assert "--min-size is 32, but with --read nothing is searched" in line


def test_proposals_of_others_are_put_together(drawn, tmp_path, capsys):
    """As in figure 3 of the paper: the boxes of a search, and dense ones beside them."""
    boxes = np.float32([[0, 0, 60, 60], [20, 10, 120, 90], [5, 5, 300, 200]])
    content = {
        "ids": ["test_0000", "test_0001", "elsewhere"],
        "boxes": [boxes] * 3,
        "objectness_logits": [np.float32([0, 2, 1])] * 3,
        "bbox_mode": 0,
    }
    pickled, dense = tmp_path / "box_proposals.pkl", tmp_path / "dense.npz"
    pickled.write_bytes(pickle.dumps(content))
    asked = ("proposals", "--data", drawn, "--split", "test")
    run(*asked, "--method", "grid", "--max-boxes", 20, "--out", dense)
    run(*asked, "--read", pickled, dense, "--out", tmp_path / "both.npz")
    text = capsys.readouterr().out
    assert "1 images in the files that none of the splits has" in text
    assert "box_proposals.pkl: elsewhere" in text and "recall at IoU" in text
    found = ProposalStore(tmp_path / "both.npz")["test_0000"]
    assert len(found) == 23 and found[0].tolist() == [20, 10, 119, 89]
    np.testing.assert_array_equal(found[3:], ProposalStore(dense)["test_0000"])
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


def test_train_writes_a_run_and_its_test(trained):
    for name in ("checkpoint.pt", "log.jsonl", "config.json", "proposals.npz", "metrics.json",
                 "detections.json", "detections.jpg", "report.html"):  # fmt: skip
        assert (trained / name).stat().st_size > 0, name
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0.0 <= metrics["mAP"] <= 1.0 and metrics["images"] == 2
    assert set(metrics["seconds"]) >= {"proposals", "training", "detection", "total"}
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


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


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


def test_coco_data_has_proposals_and_mistakes_are_named(drawn, trained, tmp_path, capsys):
    data = coco_copy(drawn, tmp_path / "copy", ["test"], crowds=True)
    run("proposals", "--data", data, "--split", "test", "--short-side", 80)
    store = ProposalStore(data / "proposals.npz")
    before = ProposalStore(trained / "proposals.npz")
    assert np.array_equal(store["test/7"], before["test_0000"])
    line = failure(capsys, "eval", "--run", trained, "--data", data, "--split", "val")
    assert "instances_val.json: no such file; splits found beside it: test" in line
    line = failure(capsys, "train", "--data", tmp_path, "--split", "val", "--network", "tiny")
    assert "looked for annotations/instances_val.json" in line and "ImageSets/Main/val.txt" in line
    path = data / "annotations" / "instances_test.json"
    path.write_text(path.read_text().replace('"star"', '"comet"'))
    line = failure(capsys, "eval", "--run", trained, "--data", data)
    assert "class 'star' is not one of its categories" in line
    path.write_text("{")
    assert "not readable as JSON" in failure(capsys, "eval", "--run", trained, "--data", data)


def test_detection_settings_out_of_range_are_refused_before_anything_is_done(
    capsys, drawn, trained, monkeypatch
):
    nothing_is_begun(monkeypatch)
    train = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", "none")
    for command in (train, ("eval", "--run", trained)):
        for name, value in (("nms-threshold", "1.5"), ("nms-threshold", "nan"),
                            ("max-detections", -1), ("score-threshold", "nan")):  # fmt: skip
            line = failure(capsys, *command, f"--detection.{name}", value)
            assert f"{name.replace('-', '_')} must be" in line and f"got {value}" in line


def nothing_is_begun(monkeypatch):
    """Whatever takes long fails the test."""
    begins = [(training, "run_training"), (results, "detect_dataset"), (results, "detect_files")]
    begins += [(module, "search_datasets") for module in (training, results)]
    for module, name in begins:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("went on"))


def test_the_metric_coco_is_there_before_the_training(capsys, drawn, trained, monkeypatch):
    nothing_is_begun(monkeypatch)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    train = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", "none")
    for command in (train, ("eval", "--run", trained)):
        assert "pip install pycocotools" in failure(capsys, *command, "--metric", "coco")


def test_several_scales_travel_from_training_to_test_and_can_be_replaced(drawn, trained, tmp_path):
    out = tmp_path / "run"
    run(
        "train", "--data", drawn, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out, "--iterations", 2, "--short-side", 96, 120, 160, "--max-side", 200,
        "--proposals", trained / "proposals.npz",
    )  # fmt: skip
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


def test_bad_scales_are_refused_before_anything_is_done(capsys, drawn, trained, monkeypatch):
    nothing_is_begun(monkeypatch)
    train = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", "none")
    test = ("eval", "--run", trained)
    find = ("detect", drawn / "JPEGImages", "--checkpoint", trained)
    for command in (train, test, find):
        for sides in ((120, 96), (96, 96), (0, 96), (96, 801)):
            line = failure(capsys, *command, "--short-side", *sides)
            assert "short_side must be" in line and f"short_side={sides}, max_side=800" in line
        assert "max_side=100" in failure(capsys, *command, "--short-side", 120, "--max-side", 100)
        assert "--short-side" in failure(capsys, *command, "--short-side", "wide")


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
    # Named by itself a drawing is an image like any other.
    drawing = tmp_path / "photo-detections-2.jpg"
    run("detect", drawing, "--checkpoint", trained, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "photo-detections-2-detections.jpg").is_file()


def test_brackets_and_colons_are_printed_as_they_are(drawn, tmp_path, capsys, monkeypatch):
    """In rich's eyes [unknown] is a style, [/star] the end of one, and :ring: a picture."""
    monkeypatch.setenv("COLUMNS", "300")  # nothing is broken into lines
    data, out = tmp_path / "[bold]" / "data", tmp_path / "o_[" / "mk] :ring:"  # o_[/mk]
    shutil.copytree(drawn, data)
    names = {"cross": "[cross]", "disc": "[unknown]", "ring": ":ring:", "square": "[bold]",
             "star": "[/star]", "triangle": "[/]"}  # fmt: skip
    for path in (data / "Annotations").iterdir():
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(f"<name>{old}<", f"<name>{new}<")
        path.write_text(text)

    def printed(*arguments) -> str:
        run(*arguments)
        return capsys.readouterr().out

    def shows_classes(text: str) -> bool:
        return all(name in text for name in names.values())

    text = printed("check-data", "--data", data, "--split", "train", "--out", out / "check")
    assert shows_classes(text) and str(out / "check/check.json") in text
    boxes = out / "boxes.npz"
    text = printed("proposals", "--data", data, "--split", "train", "test", "--short-side", 80,
                   "--out", boxes)  # fmt: skip
    assert f"proposals: {boxes}" in text
    text = printed(
        "train", "--data", data, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out / "run", "--iterations", 2, "--short-side", 120, "--proposals", boxes,
    )  # fmt: skip
    assert shows_classes(text) and f"checkpoint: {out / 'run/checkpoint.pt'}" in text
    assert f"report: {out / 'run/report.html'}" in text
    text = printed("eval", "--run", out / "run", "--metric", "coco")
    assert shows_classes(text) and f"figures: {out / 'run/eval-test/metrics.json'}" in text
    find = ("detect", data / "JPEGImages", "--checkpoint", out / "run", "--score", "-1")
    text = printed(*find, "--out", out / "found")
    found = json.loads((out / "found" / "detections.json").read_text())["images"]
    assert all(one["class"] in text for rows in found.values() for one in rows)
    assert str(out / "found/test_0000-detections.jpg") in text
    text = printed(*find, "--out", out / "found", "--many")
    assert f"results: {out / 'found/detections.jsonl'}" in text
    text = printed("svm", "--checkpoint", out / "run")
    assert shows_classes(text) and f"checkpoint: {out / 'run/svm/checkpoint.pt'}" in text
    page = out / "page.html"
    assert f"report: {page}" in printed("report", out / "run", "--out", page)
    bad = out / "[red].jpg"
    bad.write_text("no image")
    assert str(bad) in failure(capsys, "detect", bad, "--checkpoint", out / "run")


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
    assert "does not say" not in capsys.readouterr().out
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


def test_many_images_have_a_line_each_and_a_stopped_run_goes_on(
    trained, drawn, tmp_path, capsys, monkeypatch
):
    folder, bad, out = drawn / "JPEGImages", tmp_path / "bad.jpg", tmp_path / "out"
    bad.write_text("no image")
    images = sorted(folder.glob("*.jpg"))
    (tmp_path / "list.txt").write_text(f"{bad}\n\n{images[0]}\n{tmp_path / 'absent.jpg'}\n")
    command = ("detect", tmp_path / "list.txt", folder, "--many", "--checkpoint", trained,
               "--score", 0, "--out", out)  # fmt: skip
    calls, detect = [], bulk.detect_image

    def stops(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return detect(*arguments, **options)

    monkeypatch.setattr(bulk, "detect_image", stops)
    with pytest.raises(SystemExit) as end:
        run(*command)
    assert end.value.code == 130
    path = out / "detections.jsonl"
    before = path.read_bytes()
    assert before.count(b"\n") == 4  # two images, and two that cannot be read
    path.write_bytes(before + b'{"image": "cut o')
    monkeypatch.setattr(bulk, "detect_image", detect)
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
    detect = bulk.detect_image

    def stops(*arguments, calls=[], **options):  # noqa: B006
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return detect(*arguments, **options)

    monkeypatch.setattr(bulk, "detect_image", stops)
    with pytest.raises(SystemExit) as end:
        run(*parquet)
    assert end.value.code == 130
    assert len(rows_of(parts)) == 5  # what was detected before Ctrl-C is there, part or no part
    monkeypatch.setattr(bulk, "detect_image", detect)
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


def test_export_without_its_packages_says_which_extra_has_them(trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = failure(capsys, "export", "--checkpoint", trained)
    assert "pip install 'fastrcnn_engine[onnx]'" in line


def test_export_writes_one_file_and_says_what_it_takes(trained, tmp_path, capsys):
    out = tmp_path / "found.onnx"
    run("export", "--checkpoint", trained, "--out", out, "--score-threshold", "0.2")
    text = " ".join(capsys.readouterr().out.split())
    for words in ("image float32 (1, 3, h, w)", "labels int64 (M,)", "channel_order RGB", str(out)):
        assert words in text, words
    assert [path.name for path in tmp_path.iterdir()] == ["found.onnx"]
    line = failure(
        capsys, "export", "--checkpoint", trained, "--out", out, "--nms-threshold", "3"
    )
    assert "nms_threshold must be in [0, 1], got 3" in line


def test_a_compressed_detector_is_used_like_any_other(trained, drawn, tmp_path, capsys):
    out = tmp_path / "small"
    run("compress", "--checkpoint", trained, "--out", out, "--fc6", 64, "--fc7", 32, "--rois", 20)
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "fc6: 256 x 6272, rank 64 keeps", "fc7: 256 x 256, rank 32 keeps", "% of the squared",
        # cls_score and bbox_pred (7 and 28 outputs) stay; then t (u + v) for uv, twice.
        f"{256 * (6272 + 256 + 35):,}", f"{64 * (256 + 6272) + 32 * 512 + 256 * 35:,}",
        "ms for 20 RoIs", str(out / "checkpoint.pt"),
    ):  # fmt: skip
        assert words in text, words

    model = load_network(out / "checkpoint.pt")
    assert ranks_of(model) == {"fc6": 64, "fc7": 32}
    whole = load_network(trained / "checkpoint.pt")
    product = (model.head.fc6_U.weight @ model.head.fc6_L.weight).detach().numpy()
    left, singular, right = np.linalg.svd(whole.head.fc6.weight.detach().numpy(), False)
    np.testing.assert_allclose(product, (left[:, :64] * singular[:64]) @ right[:64], atol=1e-4)

    run("eval", "--run", out, "--split", "test")
    metrics = metrics_of(out / "eval-test")
    assert metrics["images"] == 2
    # The proposals are those of the training; the report says which network was tested.
    assert not (out / "proposals.npz").exists()
    assert "tiny, fc6 rank 64, fc7 rank 32" in (out / "eval-test" / "report.html").read_text()
    picture = drawn / "JPEGImages" / "test_0000.jpg"
    run("detect", picture, "--checkpoint", out, "--out", tmp_path / "found", "--score", "0")
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert found[str(picture)]

    (out / "config.json").write_text((trained / "config.json").read_text())
    line = failure(
        capsys, "train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", out,
        "--iterations", 6, "--short-side", 120, "--log-every", 2,
        "--proposals", trained / "proposals.npz", "--resume",
    )  # fmt: skip
    assert "holds a compressed network" in line and "take the checkpoint it was made of" in line
    line = failure(capsys, "compress", "--checkpoint", out, "--energy", "0.5")
    assert "compressed already: tiny, fc6 rank 64, fc7 rank 32" in line


def test_a_network_without_weights_is_told(drawn, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "_train_and_test", lambda *_: None)
    for network, told in (("caffenet", True), ("tiny", False)):
        run("train", "--data", drawn, "--split", "train", "--network", network,
            "--proposals", trained / "proposals.npz", "--out", tmp_path / network)  # fmt: skip
        assert ("starts from random weights" in capsys.readouterr().out) is told


def test_energy_chooses_the_ranks(trained, tmp_path, capsys):
    run("compress", "--checkpoint", trained / "checkpoint.pt", "--out", tmp_path,
        "--energy", "0.5", "--rois", 1)  # fmt: skip
    ranks = ranks_of(load_network(tmp_path / "checkpoint.pt"))
    text = capsys.readouterr().out
    assert set(ranks) == {"fc6", "fc7"}
    for name, rank in ranks.items():
        kept = float(re.search(rf"{name}: .*rank {rank} keeps ([\d.]+) %", text)[1])
        assert 50 <= kept < 51.5  # one singular value is about one hundredth


def test_what_compress_refuses(trained, tmp_path, capsys):
    same = ("compress", "--checkpoint", trained, "--out", tmp_path / "new")
    assert "rank of fc6 is 1024; 256 x 6272 has ranks 1 to 256" in failure(capsys, *same)
    line = failure(capsys, *same, "--fc6", 246, "--fc7", 32)
    assert "rank of fc6 is 246, which saves nothing" in line and "at most 245" in line
    assert "rank of fc7 is 0" in failure(capsys, *same, "--fc6", 64, "--fc7", 0)
    assert "saves nothing" in failure(capsys, *same, "--energy", "0.999")
    assert "energy is 1.5" in failure(capsys, *same, "--energy", "1.5")
    assert "--energy or ranks" in failure(capsys, *same, "--energy", "0.5", "--fc6", 64)
    assert "--rois is 0" in failure(capsys, *same, "--energy", "0.5", "--rois", 0)
    assert "device is 'gpu'" in failure(capsys, *same, "--energy", "0.5", "--device", "gpu")
    assert "no.pt does not exist" in failure(capsys, "compress", "--checkpoint", tmp_path / "no.pt")
    assert not (tmp_path / "new").exists()
    # Neither the checkpoint it is made of nor another is written over.
    before = (trained / "checkpoint.pt").read_bytes()
    line = failure(capsys, *same[:3], "--out", trained, "--fc6", 64, "--fc7", 32)
    assert f"{trained / 'checkpoint.pt'} exists already" in line
    assert (trained / "checkpoint.pt").read_bytes() == before


def test_svm_makes_a_detector_that_is_used_like_any_other(trained, drawn, tmp_path, capsys):
    out = tmp_path / "svm"
    run("svm", "--checkpoint", trained, "--out", out)
    text = capsys.readouterr().out
    assert "hard negatives" in text and str(out / "checkpoint.pt") in text.replace("\n", "")
    assert load_network(out / "checkpoint.pt").classifier == "svm"
    for protocol, name in (("today", "eval-test"), ("paper", "eval-test-2")):
        run("eval", "--run", out, "--detection.protocol", protocol)
        used = metrics_of(out / name)["settings"]["Detection"]
        assert used["classifier"] == "svm" and used.get("score_threshold") is None
    assert metrics_of(trained)["settings"]["Detection"]["score_threshold"] == 0.05
    picture = drawn / "JPEGImages" / "test_0000.jpg"
    run("detect", picture, "--checkpoint", out, "--out", tmp_path / "found", "--score", "-9")
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert min(one["score"] for one in found[str(picture)]) < 0

    assert "exists already" in failure(capsys, "svm", "--checkpoint", trained, "--out", out)
    again = failure(capsys, "svm", "--checkpoint", out, "--out", tmp_path / "again")
    assert "scores by SVMs already" in again


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
