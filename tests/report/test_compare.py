"""Several runs on one page."""

from __future__ import annotations

import json

import pytest

from fastrcnn_engine import cli
from fastrcnn_engine.report.compare import render_comparison
from fastrcnn_engine.report.runs import RunFiles, run_files

from .test_html import Page

METRICS = {
    "mAP": 0.5, "metric": "area", "images": 7, "seconds": {"total": 61.2},
    "settings": {"Evaluation": {"split": "test"}},
    "classes": {"dog": {"AP": 0.75}, "<cat>": {"AP": None}},
    "mistakes": {
        "score": 0.5, "missed": {"dog": 2, "<cat>": 1},
        "false_positives": {
            name: {"duplicate": 1, "localisation": 2, "other class": 3, "background": 40}
            for name in ("dog", "<cat>")
        },
    },
}  # fmt: skip
OTHERS = {
    "mAP": ("x", [1]), "metric": (5, ["area"]), "images": ("<b>",),
    "seconds": (5, {}, {"total": None}, {"total": "x"}), "settings": ({}, {"Evaluation": {}}),
    "classes": (5, ["dog"], {"dog": 5}, {"dog": {"AP": "x"}}),
    "mistakes": (5, {**METRICS["mistakes"], "score": "x"}, {**METRICS["mistakes"], "missed": 5},
                 {**METRICS["mistakes"], "false_positives": {"dog": {}}}),
}  # fmt: skip
LOG = [
    {"iteration": i, "loss": 2 / i, "images_per_second": 3.0 + i, "learning_rate": 0.01,
     **({"val_mAP": 0.09 - abs(i - 6) / 100} if i % 3 == 0 else {})}  # best in the middle
    for i in range(1, 10)
]  # fmt: skip
ONE = RunFiles("one", METRICS, LOG, {"seed": 3, "flip": True, "output": "a", "data": "<x>"})
TWO = RunFiles("two", {**METRICS, "mAP": 0.625, "metric": "coco"}, LOG,
               {"seed": 4, "flip": True, "output": "b", "data": "y"})  # fmt: skip
UNTESTED = RunFiles("three & <more>", None, LOG[:2], {})


def rows_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_results_classes_mistakes_and_differences_stand_side_by_side():
    page = render_comparison([ONE, TWO, UNTESTED])
    assert "<td>0.500</td><td><b>0.625</b></td>" in page  # the best
    text = rows_of(Page(page))
    for words in (
        "3 runs Results one two three & <more> mAP 0.500 0.625", "class one two three & <more> dog",
        "metric area coco not tested", "images 7 7 not tested",
        "iterations 9 9 2", "loss at the end 0.2222 0.2222 1",
        "images a second, in training 8 8 5", "seconds in all 61 61 not tested",
        "best mAP of the validation 0.09 0.09", "fastrcnn-engine eval --run 'three & <more>'",
        "dog 0.750 0.750", "The metrics differ: area, coco", "localisation 4 4", "missed 3 3",
        "seed 3 4", "data <x> y", "Learning rate",
    ):  # fmt: skip
        assert words in text, words
    assert "flip" not in text and "output" not in text  # the same; different by nature


def test_iterations_are_whole_numbers():
    log = [{"iteration": i, "loss": 1234.5678} for i in (20_000, 40_000)]
    text = rows_of(Page(render_comparison([ONE, RunFiles("long", METRICS, log, {})])))
    assert "iterations 9 40,000" in text and "loss at the end 0.2222 1235" in text


def test_what_a_run_has_not_got_is_left_out():
    bare = RunFiles("bare", None, (), {})
    page = render_comparison([bare])
    text = rows_of(Page(page))
    assert "not tested" in text and "<h1>bare</h1>" in page
    for heading in ("Average precision", "Training", "Mistakes", "Settings that differ"):
        assert heading not in text
    for bad in ([], [ONE, ONE]):
        with pytest.raises(ValueError, match="each with a name of its own"):
            render_comparison(bad)


def test_the_command_reads_the_folders_and_names_one_that_is_none(tmp_path, capsys):
    for name in ("a", "b", "b/eval-val", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(METRICS))
    config = {"training": {"seed": 5}, "detection": {"nms_threshold": 0.3}, "command": "x"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    (tmp_path / "b" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    (tmp_path / "b" / "eval-val" / "metrics.json").write_text(json.dumps({**METRICS, "mAP": 0.25}))
    a, b = (run_files(tmp_path / name) for name in "ab")
    assert a.metrics == METRICS and a.log == [] and a.settings == {"seed": 5, "nms_threshold": 0.3}
    assert b.metrics["mAP"] == 0.25 and len(b.log) == 9 and b.settings == {}
    out = tmp_path / "page" / "runs.html"
    cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)])
    assert "runs.html" in capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))  # checks that nothing comes from elsewhere
    assert "mAP 0.500 0.250" in rows_of(page)
    for name, content, says in (
        ("empty", None, "empty: no run here"),
        ("a/config.json", "{", "config.json: not readable"),
        ("a/config.json", "[1]", "config.json: must hold keys and values, got [1]"),
        ("a/config.json", '{"training": [1]}', "config.json: training must be a section, got [1]"),
        ("b/metrics.json", '{"mAP": 1}', "metrics.json: not of a test by this program; it lacks m"),
        ("b/metrics.json", "7", "metrics.json: must hold keys and values, got 7"),
        ("b/metrics.json", "[" * 10**5, "metrics.json: not readable as JSON"),
        *(("b/metrics.json", json.dumps({**METRICS, key: value}), f"it lacks {key}, or they are")
          for key, values in OTHERS.items() for value in values),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(SystemExit) as end:
            cli.main(["report", str(tmp_path / name.split("/")[0])])
        assert end.value.code == 2
        assert says in capsys.readouterr().err
