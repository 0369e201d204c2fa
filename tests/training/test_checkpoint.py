"""Checkpoints: plain, whole, and enough to rebuild the network."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrcnn_engine.models import build_network, compress, ranks_of
from fastrcnn_engine.training import checkpoint
from fastrcnn_engine.training.checkpoint import load_checkpoint, load_network, save_checkpoint

from .small import own_network


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    model = build_network("tiny", ["cat", "dog"])
    model.preprocessing = replace(model.preprocessing, short_side=111)
    model.delta_std.uniform_(0.1, 0.3)
    save_checkpoint(tmp_path / "deep" / "checkpoint.pt", model, iteration=7)
    return tmp_path / "deep" / "checkpoint.pt", model


def test_network_comes_back_with_classes_preprocessing_and_statistics(saved):
    path, model = saved
    loaded = load_network(path)
    assert loaded.classes == ("cat", "dog") and loaded.name == "tiny" and not loaded.training
    assert loaded.preprocessing == model.preprocessing
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_whether_boxes_are_regressed_and_at_which_sizes_comes_back(tmp_path, saved):
    path, model = saved
    assert load_network(path).box_regression
    model.box_regression = False
    model.preprocessing = replace(model.preprocessing, short_side=(100, 200))
    save_checkpoint(tmp_path / "other.pt", model)
    loaded = load_network(tmp_path / "other.pt")
    assert not loaded.box_regression and loaded.preprocessing.short_side == (100, 200)


def test_frozen_layers_come_back(tmp_path, saved):
    path, model = saved
    model.freeze(["backbone.stem", "cls_score"])
    save_checkpoint(path, model)
    loaded = load_network(path)
    assert loaded.frozen == ("backbone.stem", "cls_score")
    assert not any(p.requires_grad for p in loaded.backbone.stem.parameters())
    assert all(p.requires_grad for p in loaded.head.parameters())


def test_a_compressed_network_comes_back(saved):
    path, model = saved
    compress(model.eval(), {"fc6": 20, "fc7": 10})
    save_checkpoint(path, model)
    loaded = load_network(path)
    assert ranks_of(loaded) == {"fc6": 20, "fc7": 10}
    images, rois = torch.randn(1, 3, 48, 64), torch.tensor([[0, 4, 4, 40, 40.0]])
    with torch.inference_mode():
        for one, two in zip(model(images, rois), loaded(images, rois), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize(
    "left", [{}, {"network": {}}, {"network": {"name": "tiny"}, "model": {}}, {"network": "tiny"},
             {"network": {"name": "tiny", "classes": ["a"], "preprocessing": {}}}],
)  # fmt: skip
def test_a_file_without_its_network_is_refused(tmp_path, left):
    torch.save({"format": 1, **left}, tmp_path / "part.pt")
    for load in (load_checkpoint, load_network):
        with pytest.raises(ValueError, match=r"part\.pt is not a whole checkpoint"):
            load(tmp_path / "part.pt")


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ({"fc6": 10**12}, "rank of fc6 is 1000000000000; 256 x 6272 has ranks 1 to 256"),
        ({"fc9": 3}, "no linear layer fc9"),
        ({"fc6": 30, "fc7": 10}, "do not fit this network"),
    ],
)
def test_ranks_that_do_not_belong_to_the_weights_are_refused(saved, ranks, says):
    path, model = saved
    compress(model, {"fc6": 20, "fc7": 10})
    save_checkpoint(path, model)
    content = load_checkpoint(path)
    content["network"]["ranks"] = ranks
    torch.save(content, path)
    with pytest.raises(ValueError, match=says):
        load_network(path)


def test_an_unknown_device_is_refused(saved):
    with pytest.raises(ValueError, match="device is 'gpu'"):
        load_network(saved[0], device="gpu")


def test_weights_are_stored_as_trained_not_folded(saved):
    path, model = saved
    assert torch.equal(load_checkpoint(path)["model"]["bbox_pred.weight"], model.bbox_pred.weight)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt("stopped")])
def test_a_crash_while_writing_leaves_the_old_file(saved, monkeypatch, error):
    path, model = saved

    def crash(content, file):
        file.write(b"half a file")
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(type(error), match=str(error)):
        save_checkpoint(path, model, iteration=8)
    assert load_checkpoint(path)["iteration"] == 7
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("tensors", [True, False])
def test_unfit_files_are_refused(tmp_path, tensors):
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt", tensors=tensors)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="weights option"):
        load_checkpoint(tmp_path / "bare.pt", tensors=tensors)
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="noise.pt is not a .* no file of torch.save"):
        load_checkpoint(tmp_path / "noise.pt", tensors=tensors)
    torch.save({"format": 1}, tmp_path / "new.pt")
    torch.save(torch.zeros(99), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for damaged in (
        b"", b"hi", b"aaaa", bytes(4096),
        *((tmp_path / name).read_bytes()[:-30] for name in ("new.pt", "old.pt")),
    ):  # fmt: skip
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            load_checkpoint(tmp_path / "damaged.pt", tensors=tensors)
        assert str(error.value).startswith(
            f"{tmp_path / 'damaged.pt'} is not a readable checkpoint: it is no file that "
            "torch.save made, or is cut off, or of a newer torch ("
        )
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is not None  # for --debug


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("Input/output error"), "Input/output error"),
        (RuntimeError("Allocator: can't allocate memory"), "Allocator: can't allocate memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_file_that_may_be_good_is_not_called_damaged(saved, error, says, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.torch, "load", fails)
    with pytest.raises(ValueError, match=f"is not a readable checkpoint: {says}$"):
        load_checkpoint(saved[0])


@pytest.mark.parametrize("tensors", [True, False])
def test_a_file_of_a_newer_torch_is_refused_in_torch_s_words(saved, tmp_path, tensors):
    with zipfile.ZipFile(saved[0]) as old, zipfile.ZipFile(tmp_path / "new.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"99" if name.endswith("/version") else old.read(name))
    with pytest.raises(ValueError, match=r"or of a newer torch \(.* file with version 99, but"):
        load_checkpoint(tmp_path / "new.pt", tensors=tensors)


@pytest.mark.parametrize("tensors", [True, False])
def test_tensors_stay_in_the_file_for_who_wants_the_plain_values_alone(saved, tensors):
    path, model = saved
    content = load_checkpoint(path, tensors=tensors)
    assert (str(path) in Path("/proc/self/maps").read_text()) is not tensors
    assert content["network"]["classes"] == list(model.classes) and content["iteration"] == 7
    assert torch.equal(content["model"]["bbox_pred.weight"], model.bbox_pred.weight)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump(Evil(), file, protocol=2)  # the protocol of torch.save
    with pytest.raises(ValueError, match="not a readable checkpoint: .* more than ") as error:
        load_checkpoint(tmp_path / "evil.pt")
    assert "weights_only" not in str(error.value)  # nobody is told to let it run
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        ("network", "classes", (7, "cat", [], ["a", "a"], [1, 2], [["a"], ["b"]])),
        ("network", "preprocessing", (None, [], {"mean": 1})),
        ("network", "frozen", (7, ["nothing"], None)),
        ("network", "ranks", ("x", {"fc6": "a"})),
        ("network", "classifier", (None, "forest", ["svm"])),
        ("network", "box_regression", ("no", None)),
        ("preprocessing", "short_side", ("600", None, [[1, 2], [3, 4]])),
        ("preprocessing", "mean", (None, ["a", "b", "c"])),
    ],
)
def test_a_network_that_is_none_is_refused_with_its_file(saved, section, name, values):
    path, _ = saved
    content = load_checkpoint(path)
    network = content["network"]
    place = network if section == "network" else network["preprocessing"]
    for value in values:
        place[name] = value
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"checkpoint\.pt does not describe a network"):
            load_network(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("config", 7), ("config", None), ("config", {"data": 7}), ("config", {"proposals": ["a"]}),
     ("config", {"output": b"a"}), ("iteration", "7"), ("optimiser", []), ("meter", 1),
     ("proposals_made_with", "grid")],
)  # fmt: skip
def test_what_stands_beside_the_network_is_of_its_kind(saved, name, value):
    path, _ = saved
    torch.save(load_checkpoint(path) | {name: value}, path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a whole checkpoint: \w+ is "):
        load_checkpoint(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_find_nothing_are_refused(saved, number):
    path, model = saved
    with torch.no_grad():
        model.cls_score.weight[1, 2] = number
    save_checkpoint(path, model)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: cls_score\.weight holds numbers"):
        load_network(path)


def test_a_network_of_your_own_is_named_and_filled_in(tmp_path):
    path = tmp_path / "mine.pt"
    trained = own_network()
    trained.preprocessing = replace(trained.preprocessing, short_side=77)
    trained.delta_std.uniform_(0.1, 0.3)
    trained.freeze(["head.fc6"])
    trained.box_regression, trained.classifier = False, "svm"
    compress(trained.eval(), {"fc7": 3})
    save_checkpoint(path, trained)
    with pytest.raises(ValueError, match=r"your own, 'custom'.*load_network\(path, model=model\)"):
        load_network(path)
    model = own_network()
    assert load_network(path, model=model) is model and not model.training
    for name in ("preprocessing", "frozen", "box_regression", "classifier"):
        assert getattr(model, name) == getattr(trained, name), name
    for name, value in trained.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    model.stride = 16  # which no weight shows
    with pytest.raises(ValueError, match="stride is 16, but the backbone makes a map of"):
        load_network(path, model=model)
    with pytest.raises(ValueError, match=r"classes \['brick', 'leaf'\], but .* \['cat', 'dog'\]"):
        load_network(path, model=build_network("tiny", ["cat", "dog"]))
    with pytest.raises(ValueError, match=r"mine\.pt does not fit the model: frozen"):
        load_network(path, model=build_network("tiny", ["brick", "leaf"]))


def test_weights_of_another_network_are_refused_by_layer(tmp_path, saved):
    path, model = saved
    content = load_checkpoint(path)
    weights = content["model"]
    for change, says in (
        ({"cls_score.bias": None}, "cls_score.bias is not in the file"),
        ({"cls_score.bias": torch.zeros(7)}, r"cls_score.bias has shape \(7,\), expected \(3,\)"),
        ({"more": torch.zeros(7), 7: torch.zeros(1)}, "more is not in the network"),
        ({7: torch.zeros(1)}, "7 is not in the network"),
        ({"cls_score.bias": 7}, r"cls_score.bias has shape \(\), expected"),
    ):
        changed = {name: value for name, value in (weights | change).items() if value is not None}
        torch.save(content | {"model": changed}, path)
        with pytest.raises(ValueError, match=f"not fit this network; .* version: {says}") as error:
            load_network(path)
        assert len(str(error.value)) < len(str(path)) + 200
