"""benchmarks/ablations.py runs from end to end at a tiny size, goes on, and notices changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("benchmarks_on_the_path")
TINY = (
    "--train-images", "4", "--test-images", "2", "--pretrain-images", "3", "--short-side", "64",
    "--pretrain-iterations", "1", "--search-short-side", "60", "--threads", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def all_cells(tmp_path_factory):
    """Everything at two iterations: the options, the folder of work and the folder of results."""
    import ablations

    folder = tmp_path_factory.mktemp("ablations")
    options = [*TINY, "--work", str(folder / "work"), "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, "TIMED_ROUNDS", 1)  # that there are times is all that is asked
        ablations.main([*options, "--iterations", "2"])
    return options, folder / "work/seed-3", folder / "out"


def test_every_cell_has_a_figure_and_every_table_a_picture(all_cells):
    import ablations

    _, work, out = all_cells
    for name, experiment in ablations.EXPERIMENTS.items():
        assert experiment.reference in experiment.paper
        found = json.loads((out / f"{name}.json").read_text())
        assert [r["cell"] for r in found["results"]] == [c.name for c in experiment.cells]
        for result in found["results"]:
            assert 0 <= result["mean_ap"] <= 1
            assert ("test_ms" in result) == experiment.timed
            assert json.loads((work / f"{result['cell']}.json").read_text())["result"].items() <= (
                result.items()
            )
        assert Image.open(out / f"{name}.png").width > 800


def test_cells_learn_what_they_say(all_cells):
    _, work, _ = all_cells

    def weights(training):
        content = torch.load(work / f"trainings/{training}/checkpoint.pt", weights_only=True)
        return content["config"], content["model"]

    pretrained = torch.load(work / "pretrained-3-1.pt", weights_only=True)
    stages = {"stem": "0.weight", "stage8": "0.conv1.weight", "stage16": "0.conv1.weight"}
    for training, frozen in (("fc6", 3), ("stage16", 2), ("stage8", 1), ("base", 0)):
        _, model = weights(training)
        for i, (stage, name) in enumerate(stages.items()):
            kept = torch.equal(model[f"backbone.{stage}.{name}"], pretrained[f"{stage}.{name}"])
            assert kept == (i < frozen), (training, stage)
    _, classes = weights("classes")
    _, boxes = weights("stage-wise")
    for name in classes:
        trained = name.startswith(("bbox_pred", "delta_"))
        assert trained or torch.equal(classes[name], boxes[name]), name
    assert not torch.equal(classes["bbox_pred.weight"], boxes["bbox_pred.weight"])
    assert weights("several")[0]["short_side"] == [51, 64, 90]
    assert weights("long")[0]["iterations"] == 4
    splits = work / "drawn-8-2/ImageSets/Main"
    lengths = [len((splits / f"{n}.txt").read_text().split()) for n in ("half", "once", "twice")]
    assert lengths == [2, 4, 8]


def test_what_is_done_is_not_run_again_and_what_changed_is(all_cells, monkeypatch):
    import ablations

    options, work, _ = all_cells
    iterations = []
    train = ablations.train

    def counted(config, **others):
        start = 0
        if config.resume:
            path = config.output / "checkpoint.pt"
            start = torch.load(path, weights_only=True)["iteration"]
        iterations.append((config.output.name, start, config.iterations))
        return train(config, **others)

    monkeypatch.setattr(ablations, "train", counted)
    same = [*options, "--iterations", "2"]
    ablations.main(same)
    assert iterations == []

    # Half a file is as good as none; the training behind it is still there.
    cell = work / "base-off.json"
    whole = cell.read_text()
    cell.write_text(whole[: len(whole) // 2])
    ablations.main([*same, "--cells", "base-off"])
    assert iterations == [("base", 2, 2)]
    assert cell.read_text() == whole

    # A test of another kind needs no other training, another setting does.
    experiment = ablations.EXPERIMENTS["data"]
    changed = ablations.Cell("base", "", box_regression=False)
    iterations.clear()
    monkeypatch.setitem(
        ablations.EXPERIMENTS, "data",
        ablations.Experiment("", (changed,), "base", "L", experiment.paper),
    )  # fmt: skip
    ablations.main([*same, "--cells", "base"])
    assert iterations == [("base", 2, 2)]
    iterations.clear()
    ablations.main([*options, "--iterations", "3", "--cells", "stage-wise"])
    assert iterations == [("classes", 0, 3), ("stage-wise", 0, 3)]


def test_an_unknown_cell_is_named(all_cells, capsys):
    import ablations

    with pytest.raises(SystemExit):
        ablations.main([*all_cells[0], "--cells", "base", "tabel5"])
    assert "no cell tabel5; there are fc6, stage16" in capsys.readouterr().err


def test_average_recall_is_the_mean_over_thresholds():
    from ablations import quality
    from fastrcnn_engine.data.records import ImageRecord

    objects = np.float32([[0, 0, 9, 9], [20, 0, 29, 9], [0, 20, 9, 29]])
    difficult = np.array([False, False, True])
    record = ImageRecord("a", None, 100, 80, objects, np.ones(3, int), difficult)
    boxes = {"a": np.float32([[0, 0, 9, 9], [20, 0, 29, 5], [50, 50, 60, 60]])}
    found = quality([record], boxes)
    # IoU 1 and 0.6; the third object does not count. 0.6 passes 0.5, 0.55 and 0.6 of ten.
    assert found["an_image"] == 3 and found["recall"] == 1
    assert found["average_recall"] == pytest.approx((10 + 3) / 2 / 10)
