"""The command line itself: help, mistakes, and what holds of several commands."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import types
from typing import get_args

import pytest
from PIL import Image

from data.coco_files import annotation, write_instances, write_picture
from fastrcnn_engine import cli, options
from fastrcnn_engine.commands import bulk
from fastrcnn_engine.commands.bulk import JsonLines
from fastrcnn_engine.data.proposals import Search, compute_proposals, write_proposals
from fastrcnn_engine.data.proposals.search import METHODS
from fastrcnn_engine.data.proposals.selective_search import MODES
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.evaluation.export import export_onnx
from fastrcnn_engine.evaluation.paper_protocol import detect_set
from fastrcnn_engine.files import write_json, write_whole
from fastrcnn_engine.training.log import TrainLog

from .steps import failure, nothing_is_begun, run


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


def test_commands_that_draw_nothing_need_no_matplotlib():
    code = (
        "import sys, fastrcnn_engine.commands.detection, fastrcnn_engine.commands.training\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries do not give it back")
def test_what_a_layer_frees_is_there_for_the_next():
    code = (
        "import resource; from fastrcnn_engine import cli\n"
        "cli.main(['env'])\n"
        "layers = lambda: [b'.' * 25_000_000 for _ in range(4)]\n"
        "layers(); before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "layers(); pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "assert pages < 1000, pages"  # of 24 000
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
    assert repr(package) in done.stderr and "pip install '.[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn_engine", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip()[0].isdigit()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["demo", "--help"], ["nonsense"]])
def test_a_reader_that_has_gone_is_no_failure_to_tell_of(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn_engine", *arguments], stdout=writer,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    mistake = arguments == ["nonsense"]  # of which is told elsewhere
    assert done.returncode == (2 if mistake else 1) and done.stderr.count("\n") == mistake


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(("unbuffered", "code"), [("", 1), ("1", 2)])  # at the end, and by print
def test_output_on_a_full_disk_is_one_line(unbuffered, code):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastrcnn_engine", "--version"], stdout=full,
            stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == code and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_help_ends_on_the_narrowest_terminal():
    limit = 4 << 30  # or a failure takes all memory with it
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn_engine", "demo", "--help"], capture_output=True,
        text=True, timeout=60, env={**os.environ, "COLUMNS": "3"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0 and "--seed" in done.stdout


def test_names_that_a_terminal_has_no_letters_for_stop_nothing(trained, tmp_path):
    out = tmp_path / "gr\u00fcn\udcff"  # and one that is no UTF-8
    command = ("report", trained, "--out", out / "page.html")
    done = subprocess.run(
        [sys.executable, "-m", "fastrcnn_engine", *command], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"gr\xfcn\udcff/page.html" in done.stdout and (out / "page.html").is_file()


def test_env_prints_what_a_bug_report_needs(capsys, monkeypatch):
    monkeypatch.setattr("fastrcnn_engine.report.environment.usable_cores", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    run("env")
    text = capsys.readouterr().out
    assert "cores: 3 usable of 8\n" in text and ": None" not in text
    assert "processor: model name" not in text
    for words in ("fastrcnn_engine:", "python:", "torch:", "numpy:", "compiler:", "cuda:",
                  "cuda_reason:", "cores:", "contrib modules:", "CUDA available:"):  # fmt: skip
        assert words in text
    whole, left = types.SimpleNamespace(segmentation=1), types.SimpleNamespace()
    for contrib, told in ((whole, "yes"), (left, "no: uninstall every"), (None, "no: uninstall")):
        opencv = types.ModuleType("cv2")  # where another was taken away it has no version
        if contrib:
            opencv.ximgproc = contrib
        monkeypatch.setitem(sys.modules, "cv2", opencv)
        run("env")
        assert f"selective search: {told}" in capsys.readouterr().out


def test_env_works_without_what_the_other_commands_need():
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['tyro', 'rich', 'torch', 'cv2', 'PIL']));"
        "from fastrcnn_engine.__main__ import main; main()"
    )
    env = [sys.executable, "-c", program, "env"]
    done = subprocess.run(env, capture_output=True, text=True)
    assert done.returncode == 0 and "compiler:" in done.stdout, done.stderr
    done = subprocess.run([*env[:-1], "demo"], capture_output=True, text=True)
    assert done.returncode == 2 and "'.[train]' -c constraints.txt" in done.stderr


def test_defaults_are_those_of_the_functions():
    # The command line states them again, to document them; they must not drift apart.
    def defaults(function):
        return {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
        }

    search, detection = options.SearchOptions(), options.Detection()
    assert search.workers == defaults(compute_proposals)["workers"]
    fields = dataclasses.asdict(search)
    del fields["workers"]
    assert fields == dataclasses.asdict(Search())
    assert get_args(options.Method) == METHODS and get_args(options.Mode) == MODES
    for name in ("score_threshold", "nms_threshold", "max_detections", "box_regression"):
        assert getattr(detection, name) == defaults(detect_image)[name]
    for name in ("nms_threshold", "box_regression"):
        assert getattr(detection, name) == defaults(detect_set)[name]
    for name in ("score_threshold", "nms_threshold", "max_detections"):
        assert getattr(options.Export(), name) == defaults(export_onnx)[name]
    # What the help of detect says of its format.
    assert (bulk.PART_IMAGES, bulk.PART_SECONDS) == (4096, 600)


def test_mistakes_name_what_is_wrong(capsys, drawn, tmp_path):
    assert "nonsense" in failure(capsys, "nonsense")
    assert "--metric" in failure(capsys, "eval", "--metric", "imagenet")
    assert "--no-such-option" in failure(capsys, "demo", "--no-such-option", "1")
    for both in ((), ("--run", tmp_path, "--checkpoint", tmp_path / "a.pt")):
        assert "--run or --checkpoint" in failure(capsys, "eval", *both)
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


def test_debug_lets_the_error_through(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("proposals", "--data", tmp_path / "absent", "--debug")


def test_detection_settings_out_of_range_are_refused_before_anything_is_done(
    capsys, drawn, trained, tmp_path, monkeypatch
):
    nothing_is_begun(monkeypatch)
    train = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", "none")
    for command in (train, ("eval", "--run", trained)):
        for name, value in (("nms-threshold", "1.5"), ("nms-threshold", "nan"),
                            ("max-detections", -1), ("score-threshold", "nan"),
                            ("score-threshold", "-inf"), ("score-threshold", "1.0"),
                            ("score-threshold", "1.5")):  # fmt: skip
            line = failure(capsys, *command, f"--detection.{name}", value)
            assert f"{name.replace('-', '_')} must be" in line and f"got {value}" in line
    find = ("detect", drawn / "JPEGImages", "--checkpoint", trained)
    for command in (find, (*find, "--many", "--out", tmp_path)):
        for value in ("-inf", "nan"):
            line = failure(capsys, *command, "--score-threshold", value)
            assert "score_threshold must be a finite number" in line and f"got {value}" in line
        line = failure(capsys, *command, "--score-threshold", 2)
        assert "score_threshold must be below 1, as scores are probabilities, got 2.0" in line
    assert not list(tmp_path.iterdir())


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "page.html"
    write_whole(path, "old \udcff")
    assert path.read_text() == r"old \udcff"
    link = tmp_path / "link.html"
    link.symlink_to(path)
    write_whole(link, "old")
    assert link.is_symlink() and path.read_text() == "old"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    for write in (write_whole, write_json):
        with pytest.raises(OSError, match=r"cannot write .*page\.html: No space left on device"):
            write(path, "new")
    assert [one.read_text() for one in path.parent.iterdir()] == ["old"]


@pytest.mark.parametrize("command", ["check-data", "detect", "eval"])
def test_a_picture_is_written_whole_or_not_at_all(
    command, drawn, trained, capsys, tmp_path, monkeypatch
):
    save = Image.Image.save

    def full(image, file, **options):  # a disk, told late
        save(image, file, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments, name = {
        "check-data": (("--data", drawn, "--split", "test"), "samples.jpg"),
        "detect": ((drawn / "JPEGImages/test_0000.jpg", "--checkpoint", trained),
                   "test_0000-detections.jpg"),
        "eval": (("--checkpoint", trained, "--split", "test"), "detections.jpg"),
    }[command]  # fmt: skip
    monkeypatch.setattr(Image.Image, "save", full)
    line = failure(capsys, command, *arguments, "--out", tmp_path / "out")
    assert f"cannot write {tmp_path / 'out' / name}: No space left on device" in line
    assert not list((tmp_path / "out").glob("*.jpg*"))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_not_written(number, tmp_path):
    path = tmp_path / "file"
    with TrainLog(path, 0) as log, JsonLines(path) as rows:
        for write in (
            lambda: write_json(path, {"score": [number]}),
            lambda: rows.add({"score": number}),
            lambda: log.write({"loss": number}),
            lambda: write_proposals(path, [], settings={"size": number}),
        ):
            with pytest.raises(ValueError, match="JSON"):
                write()
    assert path.read_bytes() == b""


def test_the_metric_coco_is_there_before_the_training(capsys, drawn, trained, monkeypatch):
    nothing_is_begun(monkeypatch)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    train = ("train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", "none")
    for command in (train, ("eval", "--run", trained)):
        assert "pip install pycocotools" in failure(capsys, *command, "--metric", "coco")


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


def test_a_terminal_obeys_no_name(tmp_path, capsys, monkeypatch):
    """It would take colours, titles and worse from the class of somebody's data set."""
    monkeypatch.setenv("COLUMNS", "300")
    orders = "\x1b[31mred\x1b]0;title\x07\x9b2J\rback"
    data, out = tmp_path / "data", tmp_path / f"out{orders}"
    write_picture(data, "train", "a.jpg")
    objects = [annotation(1, 1, 1, [1, 2, 20, 20]), annotation(2, 1, 7, [1, 2, 20, 20])]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": f"{orders}.jpg"}]
    write_instances(data, "train", images, objects, [{"id": 1, "name": orders}])
    run("check-data", "--data", data, "--split", "train", "--out", out)
    text = capsys.readouterr().out
    spelt = r"\x1b[31mred\x1b]0;title\x07\x9b2J\rback"
    assert text.count(spelt) == 3 and not set(text) & set("\x1b\x07\x9b\r")
    assert spelt.replace(r"\r", " ") in failure(capsys, "check-data", "--data", out)


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
    splits = data / "ImageSets/Main"
    shutil.copy(splits / "test.txt", splits / "[test].txt")
    text = printed("proposals", "--data", data, "--split", "train", "[test]", "--short-side", 80,
                   "--out", boxes)  # fmt: skip
    assert f"proposals: {boxes}" in text and "proposals, train, [test] " in text
    text = printed(
        "train", "--data", data, "--network", "tiny", "--split", "train", "--test-split", "test",
        "--out", out / "run", "--iterations", 2, "--short-side", 120, "--proposals", boxes,
    )  # fmt: skip
    assert shows_classes(text) and f"checkpoint: {out / 'run/checkpoint.pt'}" in text
    assert f"report: {out / 'run/report.html'}" in text
    text = printed("eval", "--run", out / "run", "--metric", "coco")
    assert shows_classes(text) and f"figures: {out / 'run/eval-test/metrics.json'}" in text
    find = ("detect", data / "JPEGImages", "--checkpoint", out / "run", "--score-threshold", "-1")
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
    gone = out / "[red].jpg"
    assert str(gone) in failure(capsys, "detect", gone, "--checkpoint", out / "run")
