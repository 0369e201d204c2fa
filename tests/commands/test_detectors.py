"""Other detectors of a trained one: compressed, by SVMs, as one ONNX file."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch

from fastrcnn_engine.commands import detectors
from fastrcnn_engine.models import ranks_of
from fastrcnn_engine.training import load_checkpoint, load_network
from fastrcnn_engine.training.svm import SVMReport

from .steps import failure, metrics_of, run


def test_export_without_its_packages_says_which_extra_has_them(trained, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = failure(capsys, "export", "--checkpoint", trained)
    assert "pip install '.[onnx]'" in line


def test_export_writes_one_file_and_says_what_it_takes(trained, tmp_path, capsys):
    out = tmp_path / "found.onnx"
    run("export", "--checkpoint", trained, "--out", out, "--score-threshold", "0.2")
    text = " ".join(capsys.readouterr().out.split())
    size = f"{out} ({out.stat().st_size / 1e6:.1f} MB)"
    for words in ("image float32 (1, 3, h, w)", "labels int64 (M,)", "channel_order RGB", size):
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
    before, after = 256 * (6272 + 256 + 35), 64 * (256 + 6272) + 32 * 512 + 256 * 35
    whole = load_network(trained / "checkpoint.pt")
    for words in (
        "fc6: 256 x 6272, rank 64 keeps", "fc7: 256 x 256, rank 32 keeps", "% of the squared",
        # cls_score and bbox_pred (7 and 28 outputs) stay; then t (u + v) for uv, twice.
        f"multiply-adds a RoI │ {before:,} │ {after:,} │ {after / before:.3f}",
        f"parameters of the network │ {sum(p.numel() for p in whole.parameters()):,}",
        "ms for 20 RoIs", str(out / "checkpoint.pt"),
    ):  # fmt: skip
        assert words in text, words

    old, new = (load_checkpoint(folder / "checkpoint.pt") for folder in (trained, out))
    for name in ("config", "proposals_made_with", "iteration", "learned_from"):
        assert new[name] == old[name]
    assert "optimiser" in old and "optimiser" not in new
    model = load_network(out / "checkpoint.pt")
    assert ranks_of(model) == {"fc6": 64, "fc7": 32}
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
    run("detect", picture, "--checkpoint", out, "--out", tmp_path / "found",
        "--score-threshold", "0")  # fmt: skip
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert found[str(picture)]

    config = out / "config.json"
    config.write_bytes((trained / "config.json").read_bytes())
    line = failure(
        capsys, "train", "--data", drawn, "--network", "tiny", "--split", "train", "--out", out,
        "--iterations", 6, "--short-side", 120, "--log-every", 2,
        "--proposals", trained / "proposals.npz", "--resume",
    )  # fmt: skip
    assert "holds a compressed network" in line and "take the checkpoint it was made of" in line
    assert config.read_bytes() == (trained / "config.json").read_bytes()
    line = failure(capsys, "compress", "--checkpoint", out, "--energy", "0.5")
    assert "compressed already: tiny, fc6 rank 64, fc7 rank 32" in line


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
        assert metrics_of(out / name)["mistakes"]["score"] == 0
    assert metrics_of(trained)["settings"]["Detection"]["score_threshold"] == 0.05
    picture = drawn / "JPEGImages" / "test_0000.jpg"
    run("detect", picture, "--checkpoint", out, "--out", tmp_path / "found",
        "--score-threshold", "-9")  # fmt: skip
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["images"]
    assert min(one["score"] for one in found[str(picture)]) < 0
    # These scores do not end at 1.
    run("detect", picture, "--checkpoint", out, "--out", tmp_path / "found",
        "--score-threshold", "1.5")  # fmt: skip
    run("eval", "--run", out, "--detection.score-threshold", "1.5")

    assert "exists already" in failure(capsys, "svm", "--checkpoint", trained, "--out", out)
    again = failure(capsys, "svm", "--checkpoint", out, "--out", tmp_path / "again")
    assert "scores by SVMs already" in again


@pytest.mark.parametrize("difficult", [True, False])
def test_svm_learns_from_the_objects_of_the_training(
    difficult, trained, drawn, tmp_path, monkeypatch, capsys
):
    data = shutil.copytree(drawn, tmp_path / "data")
    path = data / "Annotations/train_0000.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    content = load_checkpoint(trained / "checkpoint.pt")
    content["config"] |= {"data": str(data), "difficult": difficult, "seed": 7}
    torch.save(content, tmp_path / "checkpoint.pt")
    seen = []

    def noted(model, records, store, *, seed):
        seen.extend(records)
        assert seed == 7
        return [SVMReport("star", objects=1, negatives=22, fits=3)]

    monkeypatch.setattr(detectors, "train_svms", noted)
    run("svm", "--checkpoint", tmp_path)
    flags = np.concatenate([record.difficult for record in seen])
    assert flags.any() == difficult and len(seen) == 4
    text = " ".join(capsys.readouterr().out.split())
    assert "class ┃ objects ┃ hard negatives ┃ trainings" in text and "star │ 1 │ 22 │ 3" in text
