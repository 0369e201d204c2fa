"""Settings from a file: what is taken, what is refused, and a saved run as a file of settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastrcnn_engine import cli, options
from fastrcnn_engine.commands import training
from fastrcnn_engine.commands.config_file import presets, read_settings
from fastrcnn_engine.commands.training import Train, configured
from fastrcnn_engine.training import TrainConfig


def read(tmp_path: Path, text: str) -> dict:
    (tmp_path / "run.yaml").write_text(text)
    return read_settings(str(tmp_path / "run.yaml"), Train)[0]


def test_values_have_the_types_of_the_settings(tmp_path):
    text = """
        data: VOC2007
        network: tiny
        learning_rate: 1e-3   # a text to YAML 1.1
        short_side: [480, 576]
        max_side: 800
        momentum: 0
        flip: false
        classes: [cat, "no"]
        weights: null
        learning_rate_steps: [10, 20]
        search: {mode: fast, short_side: null}
        detection:
          protocol: paper
    """
    assert read(tmp_path, text) == {
        "data": Path("VOC2007"), "network": "tiny", "learning_rate": 0.001,
        "short_side": (480, 576), "max_side": 800, "momentum": 0.0, "flip": False,
        "classes": ("cat", "no"), "weights": None, "learning_rate_steps": (10, 20),
        "search": options.SearchOptions(mode="fast", short_side=None),
        "detection": options.Detection(protocol="paper"),
    }  # fmt: skip
    assert read(tmp_path, "# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning-rate: 1", "unknown key 'learning-rate'; did you mean 'learning_rate'?"),
        ("iteration: 1", "unknown key 'iteration'; did you mean 'iterations'?"),
        ("search: {mod: fast}", "search: unknown key 'mod'; did you mean 'mode'?"),
        ("config: voc07-L", "names another, which only --config can; leave it out"),
        ("qqq: 1", "unknown key 'qqq'; known are accumulate, amp, background_low, "),
        ("3: 1", "unknown key 3; known are"),
        ("search: fast", "search must be a section, got 'fast'"),
        ("iterations: many", "iterations is 'many'; it must be a whole number or null"),
        ("iterations: 1.5", "iterations is 1.5; it must be a whole number"),
        ("iterations: true", "iterations is True; it must be a whole number"),
        ("learning_rate: true", "learning_rate is True; it must be a number or null"),
        ("flip: 1", "flip is 1; it must be true or false"),
        ("classes: [no]", r"classes is \[False\]; it must be a list \(each of them a text \(in qu"),
        ("classes: cat", "classes is 'cat'; it must be a list"),
        ("network: resnet", "network is 'resnet'; it must be one of caffenet, vgg_cnn_m_1024, "),
        ("data: 7", "data is 7; it must be a path"),
        ("seed: 1\nseed: 2", "the key 'seed' is there twice"),
        ("a: [", "not readable as YAML"),
        ("[seed]: 1", "not readable as YAML: .*unhashable key"),
        ("? {seed: 1}\n: 2", "not readable as YAML: .*unhashable key"),
        ("- 1", r"must hold keys and values, got \[1\]"),
        ("training: {seed: 1}\nseed: 2", "training must be a section with keys of its own"),
        ("!!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("seed: 2026-13-45", "not readable as YAML: month must be in"),
        ("seed: !!timestamp x", "not readable as YAML"),
        ("flip: !!bool x", "not readable as YAML"),
        (f"seed: {'[' * 5000}", "not readable as YAML"),
        (f"learning_rate: {'9' * 400}", "learning_rate is 9{9}.*; it must be a number"),
        ("network: [&a [x, x, x, x, x], " + ", ".join(
            f"&{name} [{', '.join([f'*{before}'] * 5)}]"
            for before, name in zip("abcdefgh", "bcdefghi", strict=True)
        ) + "]", r"network is \[\['x', .*; it must be one of"),  # two million of x
    ],
)
def test_mistakes_name_file_key_and_what_was_expected(tmp_path, text, says):
    with pytest.raises(ValueError, match=f"(?s){says}") as error:
        read(tmp_path, text)
    assert "run.yaml" in str(error.value) and len(str(error.value)) < 1000


def test_a_file_of_no_text_is_named(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"seed: 1\xff")
    with pytest.raises(ValueError, match=r"config: .*run\.yaml is not a text file"):
        read_settings(str(tmp_path / "run.yaml"), Train)


def test_neither_a_preset_nor_a_file():
    with pytest.raises(ValueError, match="config is 'voc07-X': no such file, and the presets are "):
        read_settings("voc07-X", Train)


@pytest.mark.parametrize("name", presets())
def test_presets_are_good_settings_and_help_lists_them(name, capsys):
    options = dataclasses.replace(configured(name), data=Path("d"), proposals=Path("p"))
    options.resolved()
    options.detection.settings()
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", ["voc07-S", "voc07-M", "voc07-L"])
def test_the_papers_presets_search_as_the_paper_did(name):
    # The published boxes: fast mode, images as they are, boxes of at least 20 pixels.
    search = options.SearchOptions(mode="fast", short_side=None, min_size=20)
    assert configured(name).search == search


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(
        "{data: here, split: val, seed: 9, flip: false, short_side: [72, 96]}"
    )
    seen = []
    monkeypatch.setattr(training, "train", lambda options, command: seen.append(options))
    cli.main(["train", f"--config={tmp_path / 'run.yaml'}", "--seed", "5", "--short-side", "80"])
    cli.main(["train", "--split", "all", "--config", str(tmp_path / "run.yaml"), "--flip"])
    first, second = seen
    assert (first.split, first.seed, first.flip, first.short_side) == ("val", 5, False, 80)
    assert (second.split, second.seed, second.flip, second.short_side) == ("all", 9, True, (72, 96))
    assert first.data == Path("here") and first.momentum == 0.9


def test_a_missing_config_is_a_mistake_and_not_a_training(capsys):
    for arguments in (["--config"], ["--config", "absent.yaml", "--data", "x"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["train", *arguments])
        assert end.value.code == 2
        assert "config" in capsys.readouterr().err


def test_the_settings_saved_with_a_run_are_a_config(tmp_path, monkeypatch):
    """Written by the command, read by the command: the same settings, resolved."""
    monkeypatch.setattr(training, "load_dataset", lambda *_, **__: None)
    monkeypatch.setattr(training, "print_data", lambda *_, **__: None)
    monkeypatch.setattr(training, "ProposalStore", lambda _: type("Store", (), {"settings": None}))
    monkeypatch.setattr(training, "check_proposals", lambda *_: None)

    class Trained(Exception):
        pass

    def stop(config, dataset, on_start):
        on_start()
        raise Trained

    monkeypatch.setattr(training, "run_training", stop)
    saved = []
    for number, given in enumerate((
        ["--network", "tiny", "--short-side", "72", "96", "--max-side", "99", "--classes", "a", "b",
         "--search.mode", "fast", "--detection.nms-threshold", "0.4", "--data", "d",
         "--proposals", "p", "--metric", "11point"],
        ["--config", str(tmp_path / "0" / "config.json")],
    )):  # fmt: skip
        out = tmp_path / str(number)
        with pytest.raises(Trained):
            cli.main(["train", *given, "--out", str(out)])
        saved.append(json.loads((out / "config.json").read_text()))
    for content in saved:
        del content["training"]["output"], content["command"]
    assert saved[0] == saved[1]
    assert saved[0]["training"]["iterations"] == 3000 and saved[0]["metric"] == "11point"
    assert "resume" not in saved[0]["training"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"network": "tiny", "iterations": 3000, "learning_rate_steps": (2250,)}),
        (["--iterations", "500"], {"learning_rate_steps": (375,), "learning_rate": 0.02}),
        (
            ["--network", "vgg16"],
            {"iterations": 40_000, "learning_rate_steps": (30_000,), "learning_rate": 0.001,
             "background_low": 0.1, "max_side": 1000},
        ),
    ],
)  # fmt: skip
def test_what_a_recipe_filled_in_for_a_run_is_left_to_the_recipe(
    given, expected, tmp_path, monkeypatch
):
    own = {"momentum": 0.5, "warmup": 7, "short_side": 300}  # not the recipe's
    first = TrainConfig(data=Path("d"), proposals=Path("p"), network="tiny", **own)
    settings = first.resolved().to_dict()
    of_a_run = {"training": settings, "search": {}, "command": "fastrcnn-engine train"}
    (tmp_path / "config.json").write_text(json.dumps(of_a_run))
    (tmp_path / "own.yaml").write_text(json.dumps(settings))
    (tmp_path / "section.yaml").write_text(json.dumps({"training": settings}))
    seen = []
    monkeypatch.setattr(training, "train", lambda options, command: seen.append(options))
    for name in ("config.json", "own.yaml", "section.yaml"):
        cli.main(["train", "--config", str(tmp_path / name), *given])
    found = seen[0].resolved()
    for key, value in (expected | own).items():
        assert getattr(found, key) == value, key
    # A file of one's own says what it says.
    for own_file in seen[1:]:
        assert own_file.resolved().learning_rate_steps == (2250,)
        assert own_file.learning_rate == 0.02
