"""benchmarks/paper_claims.py runs from end to end at a tiny size; what its rivals are made of."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.usefixtures("benchmarks_on_the_path")
TINY = (
    "--train-images", "6", "--test-images", "2", "--pretrain-images", "3", "--rcnn-iterations", "3",
    "--fast-rcnn-iterations", "3", "--sppnet-iterations", "3", "--pretrain-iterations", "2",
    "--search-short-side", "60", "--threads", "2",
)  # fmt: skip


def test_all_three_from_images_to_the_picture(tmp_path):
    import paper_claims

    options = [*TINY, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "found.json")]
    # Detector by detector: what is done is kept.
    paper_claims.main([*options, "--modes", "fast_rcnn"])
    part = json.loads((tmp_path / "found.json").read_text())
    assert [run["mode"] for run in part["results"]] == ["fast_rcnn"] and part["checks"] == []
    kept = tmp_path / "work/seed-3/fast_rcnn.json"
    written = kept.stat().st_mtime_ns
    paper_claims.main(options)
    assert kept.stat().st_mtime_ns == written

    found = json.loads((tmp_path / "found.json").read_text())
    ours, spp, rcnn = found["results"]
    assert [run["mode"] for run in (ours, spp, rcnn)] == ["fast_rcnn", "sppnet", "rcnn"]
    assert list(ours["train_seconds"]) == ["training"]
    assert ours["feature_bytes"] == 0 < rcnn["feature_bytes"]
    assert ours["through_convolutions"] == 2 * 3  # images of a batch, iterations
    assert spp["through_convolutions"] == 6 * 5  # images, scales
    assert rcnn["through_convolutions"] > 3 * 128 + 6  # crops
    for run, updated in ((ours, True), (spp, False), (rcnn, True)):
        assert run["test_seconds"] > 0 and 0 <= run["mean_ap"] <= 1
        moved = [stage["backbone.stage8"] for stage in run["moved"].values()]
        assert any(moved) == updated, run["mode"]
    assert len(found["checks"]) == 4 + 2 * 6
    assert Image.open(tmp_path / "found.png").width > 1000

    # Of two seeds the table's spread, where the error bar ends.
    other = [run | {"mean_ap": run["mean_ap"] + 0.2} for run in found["results"]]
    both = found | {"results": found["results"] + other, "rounds": 2}
    paper_claims.draw(both, tmp_path / "two.png")
    number = plt.gcf().axes[2].texts[0]
    assert number.get_text() == f" {100 * ours['mean_ap'] + 10:.1f} ± 14.1"
    assert number.get_position()[0] == pytest.approx(100 * ours["mean_ap"] + 10 + 200**0.5)

    with pytest.raises(SystemExit, match="other settings"):
        paper_claims.main([*options, "--rcnn-iterations", "4"])


def test_a_crop_is_the_box_with_a_margin():
    from rivals.rcnn import CROP, MARGIN, warp

    # Rising to the right, so that a value tells its column.
    image = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 150, axis=0).repeat(3, axis=2)
    (crop,) = warp(image, np.float32([[50, 40, 145, 99]]))
    assert crop.shape == (CROP, CROP, 3)
    scale = 96 / (CROP - 2 * MARGIN)
    columns = 50 - 0.5 + (np.arange(CROP) + 0.5 - MARGIN) * scale
    assert np.abs(crop[CROP // 2, :, 0] - columns).max() <= 1
    (corner,) = warp(image, np.float32([[0, 0, 30, 30]]))
    assert (corner[:3] == 128).all() and (corner[:, :3] == 128).all()  # outside of the image


def test_spp_windows_are_the_cells_with_their_centres_inside():
    from rivals.sppnet import windows

    boxes = np.float32([[8, 9, 39, 41], [17, 17, 22, 22], [-50, 0, 900, 6]])
    cells = windows(boxes, 1.0, 8, (10, 20))
    # Strictly inside: a centre on the border does not count, as in the appendix.
    assert cells[0].tolist() == [0, 2, 2, 4, 5]
    assert cells[1].tolist() == [0, 2, 2, 2, 2]  # between two centres: one cell
    assert cells[2].tolist() == [0, 0, 0, 19, 0]  # clipped to the map
    doubled = windows(boxes[:1], 2.0, 8, (10, 20))
    assert doubled[0].tolist() == [0, 3, 3, 9, 9]


def test_regressors_find_the_move_they_were_shown():
    from torch import nn

    from fastrcnn_engine import decode_boxes
    from fastrcnn_engine.data.voc import ImageRecord
    from rivals.stages import Job, train_regressors

    rng = np.random.default_rng(0)
    records, proposals, pooled = [], {}, []
    for i in range(30):
        box = np.float32([[20, 20, 79, 59]])
        offsets = rng.uniform(-6, 6, (8, 4)).astype(np.float32)
        records.append(ImageRecord(str(i), None, 100, 80, box, np.array([1]), np.zeros(1, bool)))
        proposals[str(i)] = box + offsets
        rows = np.concatenate([np.zeros((1, 4), np.float32), offsets])
        pooled.append(torch.from_numpy(rows))

    class Classes(nn.Module):
        classes = ("a",)

    job = Job(records, {}, proposals, None, Classes(), None)
    layer = train_regressors(job, lambda i: pooled[i], iou=0.5, penalty=1.0)
    with torch.inference_mode():
        deltas = layer(pooled[0]).numpy()
    moved = decode_boxes(deltas, job.boxes(0)).reshape(9, 2, 4)
    before = np.abs(proposals["0"] - records[0].boxes).mean()
    assert np.abs(moved[1:, 1] - records[0].boxes).mean() < before / 4
    deltas = deltas.reshape(9, 2, 4)
    assert not deltas[:, 0].any()  # nothing moves for the background
