"""A detector in one ONNX file: what onnxruntime detects is what we detect."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from build.cuda_on_the_cpu import CudaOnTheCpu
from fastrcnn_engine.data.preparation import Preprocessing, prepare_image
from fastrcnn_engine.evaluation.detect import detect_image, pyramid_maps
from fastrcnn_engine.evaluation.export import INPUTS, OUTPUTS, DetectionGraph, export_onnx
from fastrcnn_engine.models import build_network


def tiny():
    torch.manual_seed(0)
    model = build_network("tiny", ["cat", "dog", "cow"]).eval()
    # Scores and boxes that differ from RoI to RoI.
    nn.init.normal_(model.cls_score.weight, std=0.05)
    nn.init.normal_(model.bbox_pred.weight, std=0.05)
    model.delta_std.fill_(0.3)
    model.delta_mean.normal_(std=0.1)
    model.preprocessing = replace(model.preprocessing, short_side=96, max_side=160)
    return model


def image_and_proposals(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height)
    image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    corner = rng.uniform(0, [width - 12, height - 12], (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(3, 60, (count, 2))])
    return image, boxes.clip(0, [width - 1, height - 1] * 2).astype(np.float32)


def run(path, model, image: np.ndarray, proposals: np.ndarray) -> list[np.ndarray]:
    prepared, scale = prepare_image(image, model.preprocessing)
    session = onnxruntime.InferenceSession(path)
    assert [tensor.name for tensor in session.get_inputs()] == list(INPUTS)
    values = prepared[None].numpy(), proposals, np.array(scale), np.float32(image.shape[:2])
    return session.run(list(OUTPUTS), dict(zip(INPUTS, values, strict=True)))


def assert_same(found: list[np.ndarray], expected) -> None:
    """The same detections by falling score. Two libraries run the network, so scores that are
    equal but for its rounding may change places."""
    assert (np.diff(found[1]) <= 0).all()
    mine, theirs = (np.lexsort(pairs) for pairs in (found[2:], (expected.labels, expected.rows)))
    for actual, name, tolerance in zip(found, OUTPUTS, (1e-2, 1e-4, 0, 0), strict=True):
        np.testing.assert_allclose(
            actual[mine], getattr(expected, name)[theirs], rtol=0, atol=tolerance
        )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"score_threshold": 0.3},
        {"score_threshold": 0.3, "nms_threshold": 0.6, "max_detections": 9},
        {"score_threshold": 0.99, "max_detections": 1},  # nothing is found
    ],
)
def test_same_detections_on_images_of_any_size(change, tmp_path):
    model, path = tiny(), tmp_path / "new" / "detector.onnx"
    export_onnx(model, path, **change)
    for size in ((96, 130, 40), (150, 96, 70), (64, 300, 1), (96, 130, 0)):
        image, proposals = image_and_proposals(*size)
        expected = detect_image(model, image, proposals, **change)
        assert_same(run(path, model, image, proposals), expected)
        some = len(proposals) > 0 and change.get("score_threshold") != 0.99
        assert (len(expected.labels) > 0) == some


def test_rois_are_those_of_detection():
    """Scaled in float64: the last bit of a float32 may move a window."""
    model, taken = tiny(), []
    image, proposals = image_and_proposals(150, 130, 200)
    prepared, scale = prepare_image(image, model.preprocessing)
    with torch.no_grad():
        (level,) = pyramid_maps(model, image, proposals)
        model.register_forward_pre_hook(lambda _, arguments: taken.append(arguments[1]))
        factor, size = torch.tensor(scale, dtype=torch.float64), torch.tensor([150.0, 130.0])
        graph = DetectionGraph(model, 0.05, 0.3, 100)
        graph(prepared[None], torch.from_numpy(proposals), factor, size)
    assert torch.equal(taken[0], level.rois)


@pytest.mark.parametrize(("kind", "nms_threshold"), [("no box regression", 0), ("svm", 1)])
def test_detectors_of_other_kinds(kind, nms_threshold, tmp_path):
    model, path = tiny(), tmp_path / "detector.onnx"
    if kind == "svm":
        model.classifier = "svm"
    else:
        model.box_regression = False
    export_onnx(model, path, nms_threshold=nms_threshold)
    for count in (30, 0):
        image, proposals = image_and_proposals(96, 130, count)
        expected = detect_image(model, image, proposals, nms_threshold=nms_threshold)
        assert_same(run(path, model, image, proposals), expected)


def test_the_file_says_how_images_are_prepared(tmp_path, caplog):
    model, path = tiny(), tmp_path / "detector.onnx"
    caplog.set_level(logging.INFO, logger="torch.onnx")
    export_onnx(model, path, score_threshold=0.2, nms_threshold=0.4, max_detections=7)
    assert logging.getLogger("torch.onnx").level == logging.INFO  # as it was
    file = onnx.load(path)
    assert {used.domain: used.version for used in file.opset_import}[""] == 18
    (entry,) = [one for one in file.metadata_props if one.key == "fastrcnn_engine"]
    said = json.loads(entry.value)
    assert said["classes"] == ["cat", "dog", "cow"]
    assert Preprocessing.from_dict(said["preprocessing"]) == model.preprocessing
    assert (said["network"], said["score_threshold"]) == ("tiny", 0.2)
    assert (said["nms_threshold"], said["max_detections"]) == (0.4, 7)


def test_a_detector_on_a_gpu_is_exported_and_stays_there(tmp_path, monkeypatch):
    class Given(Exception):
        pass

    def export(graph, example, **_):
        raise Given(*(x.device.type for x in (*graph.parameters(), *graph.buffers(), *example)))

    monkeypatch.setattr(torch.onnx, "export", export)
    with CudaOnTheCpu():
        model = tiny().to("cuda")
        with pytest.raises(Given) as given:
            export_onnx(model, tmp_path / "detector.onnx")
        assert {x.device.type for x in model.parameters()} == {"cuda"}
    assert {*given.value.args} == {"cpu"}


def test_a_file_without_a_score_threshold_says_so_in_json(tmp_path):
    export_onnx(tiny(), tmp_path / "d.onnx", score_threshold=-np.inf)
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    text = session.get_modelmeta().custom_metadata_map["fastrcnn_engine"]
    assert "Infinity" not in text and json.loads(text)["score_threshold"] is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: model.train(), "training mode"),
        (
            lambda model: setattr(
                model, "preprocessing", replace(model.preprocessing, short_side=(96, 120))
            ),
            "image pyramid",
        ),
    ],
)
def test_refusals(change, says, tmp_path):
    model = tiny()
    change(model)
    with pytest.raises(ValueError, match=says):
        export_onnx(model, tmp_path / "detector.onnx")
    assert not any(tmp_path.iterdir())
    for name, values in (
        ("score_threshold", (np.nan, np.inf, 1.0)),
        ("nms_threshold", (-0.1, 1.5, np.nan)),
        ("max_detections", (0,)),
    ):
        for value in values:
            with pytest.raises(ValueError, match=name):
                export_onnx(tiny(), tmp_path / "detector.onnx", **{name: value})
