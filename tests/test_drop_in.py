"""Examples for other detectors: the docs show them, the benchmark checks before it times."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrcnn_engine
from build.steps import ROOT, run


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    for folder in ("benchmarks", "examples"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import dropin_bench

    return dropin_bench


def test_the_guide_shows_the_examples() -> None:
    page = (ROOT / "docs/in-other-detectors.md").read_text()
    text = (ROOT / "examples/drop_in.py").read_text()
    shown = [
        ast.get_source_segment(text, node)
        for node in ast.parse(text).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    ]
    assert len(shown) == 5
    for code in shown:
        assert code and f"\n{code}\n" in page, code


def test_modules_can_be_copied_and_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an average of weights over time and torch.save do with a whole detector."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import drop_in

    for module in (drop_in.BoxHead(4, 3), drop_in.ROIPooler(7, (1 / 4, 1 / 8))):
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert repr(again) == repr(module)


def test_every_example_runs(bench) -> None:
    """With this package in torchvision's place: the tests are run without torchvision, and whether
    results are the same as its own the benchmark checks before it times. The loop is a comparison.
    """
    peers = [SimpleNamespace(name="torchvision", ops=fastrcnn_engine)]
    sections = bench.sections(peers, "cpu")
    assert [len(section.rows) for section in sections] == [2, 2, 2, 2, 2]
    for section in sections:
        assert "2 times the same" in section.check()
    assert len(bench.sections([], "cpu")) == 1  # the loop, which needs torch alone


def test_torchvisions_step_behind_the_heads_is_done_as_torchvision_does_it(bench) -> None:
    """Every score by itself, best first: the highest that no better box of its class overlaps."""
    torch.manual_seed(2)
    sizes, counts, classes = [(60, 90), (80, 50)], [40, 30], 4
    proposals = [50 * torch.rand(n, 4) for n in counts]
    for boxes in proposals:
        boxes[:, 2:] += boxes[:, :2] + 5
    logits, deltas = 2 * torch.randn(70, classes), torch.randn(70, 4 * classes)
    heads = SimpleNamespace(
        box_coder=SimpleNamespace(weights=(10.0, 20.0, 5.0, 4.0)), score_thresh=0.3,
        nms_thresh=0.6, detections_per_img=7,
    )  # fmt: skip
    found = bench.postprocess_detections(heads, logits, deltas, proposals, sizes)
    scores_of, deltas_of = logits.softmax(1).split(counts), deltas.split(counts)
    for i, (boxes, (height, width)) in enumerate(zip(proposals, sizes, strict=True)):
        scores, regression = scores_of[i], deltas_of[i]
        shift = regression.view(-1, classes, 4) / torch.tensor([10.0, 20.0, 5.0, 4.0])
        size = (boxes[:, 2:] - boxes[:, :2])[:, None]
        centre = boxes[:, None, :2] + size / 2 + shift[..., :2] * size
        size = size * shift[..., 2:].exp()
        moved = torch.cat([centre - size / 2, centre + size / 2], 2)
        moved = moved.clamp(min=0).minimum(torch.tensor([width, height] * 2))
        overlap = [fastrcnn_engine.box_iou(of_class, of_class) for of_class in moved.unbind(1)]
        kept: list[tuple[int, int]] = []  # rows and labels
        for place in scores.flatten().argsort(descending=True).tolist():
            row, label = divmod(place, classes)
            rivals = [other for other, of in kept if of == label]
            if label and scores[row, label] > 0.3 and not (overlap[label][row, rivals] > 0.6).any():
                kept.append((row, label))
        assert len(kept) > 7
        rows, labels = torch.tensor(kept[:7]).T
        torch.testing.assert_close(found[0][i], moved[rows, labels], rtol=0, atol=1e-4)
        assert torch.equal(found[1][i], scores[rows, labels])
        assert torch.equal(found[2][i], labels)


@pytest.mark.parametrize("wrong", [[1.0, 2.1], [1.0], [1.0, 2.000001]])
def test_another_result_is_not_timed(bench, wrong: list[float]) -> None:
    results = torch.tensor([1.0, 2.0]), torch.tensor(wrong)
    rows = [bench.Row(str(i), "whole", lambda r=r: r) for i, r in enumerate(results)]
    with pytest.raises(SystemExit, match="nothing is timed: 1"):
        bench.same(rows, exactly=True)
    if len(wrong) == 2 and wrong[1] == pytest.approx(2, abs=1e-5):
        assert bench.same(rows, exactly=False)


def test_the_benchmark_writes_what_it_timed(tmp_path: Path) -> None:
    out = tmp_path / "times.json"
    result = run(sys.executable, ROOT / "benchmarks/dropin_bench.py", "--rounds", "1", "--device",
                 "cpu", "--out", out, PATH="")  # not even git is needed  # fmt: skip
    assert result.returncode == 0, result.stderr
    written = json.loads(out.read_text())
    left_out = "torchvision" in written["left_out"]
    assert len(written["results"]) == (2 if left_out else 8)
    assert len(written["checks"]) == (1 if left_out else 4)
    for record in written["results"]:
        assert record["best_ms"] > 0
