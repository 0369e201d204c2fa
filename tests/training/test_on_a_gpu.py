"""What the tests on a CPU promise of training and detection, where they run on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.evaluation.detect import detect_image, score_proposals
from fastrcnn_engine.models import build_network
from fastrcnn_engine.models.compress import compress
from fastrcnn_engine.training import train
from fastrcnn_engine.training.checkpoint import load_network

from .small import CLASSES, assert_same_checkpoint, lines_of, own_network

# Float32 numbers that were summed in other orders: some thousand terms, a rounding each.
ROUNDED = 1000 * float(np.finfo(np.float32).eps)


@pytest.fixture
def whole_float32():
    """Without it convolutions on a GPU round their operands to 10 bits (TF32)."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.cuda
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(voc, tmp_path, amp, cuda_device):
    # Dropout is drawn on the GPU, by a generator whose state is in the checkpoint.
    voc = replace(voc, device=cuda_device.type, amp=amp, iterations=8, checkpoint_every=4,
                  learning_rate_steps=(6,))  # fmt: skip
    whole = train(replace(voc, output=tmp_path / "whole"), model=own_network(), progress=False)
    parts = replace(voc, output=tmp_path / "parts")
    train(replace(parts, iterations=4), model=own_network(), progress=False)
    torch.rand(17, device=cuda_device)  # another user of the generator must not matter
    resumed = train(replace(parts, resume=True), model=own_network(), progress=False)
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)
    assert lines_of(whole.log) == lines_of(resumed.log)


@pytest.mark.cuda
def test_the_first_losses_are_the_cpus(voc, tmp_path, cuda_device, whole_float32):
    lines = [
        lines_of(
            train(
                replace(voc, device=device, output=tmp_path / device, iterations=1, log_every=1),
                model=own_network(dropout=0.0), progress=False,
            ).log
        )[0]
        for device in ("cpu", cuda_device.type)
    ]  # fmt: skip
    assert lines[0]["foreground"] > 0
    assert lines[1] == pytest.approx(lines[0], rel=ROUNDED)


@pytest.mark.cuda
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_run_with_tests_learns_and_its_network_detects_the_same_on_a_cpu(
    voc, amp, cuda_device, whole_float32
):
    voc = replace(
        voc, device=cuda_device.type, amp=amp, val_split="train", val_every=15, iterations=30,
        learning_rate=0.02, warmup=10, log_every=15, profile=True,
    )  # fmt: skip
    result = train(voc, progress=False)
    first, last = lines_of(result.log)
    assert last["loss"] < first["loss"] and last["val_mAP"] > 0.5
    assert result.seconds is not None and result.seconds["backward"] > 0

    image = load_image(voc.data / "JPEGImages" / "first.png")
    proposals = ProposalStore(voc.proposals)["first"]
    there, here = result.model, load_network(result.checkpoint).eval()
    assert [m.delta_mean.device.type for m in (there, here)] == ["cuda", "cpu"]
    for one, other in zip(*(score_proposals(m, image, proposals) for m in (there, here)),
                          strict=True):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=ROUNDED, atol=ROUNDED * np.abs(other).max())
    found = detect_image(there, image, proposals)
    assert len(found.scores) > 0
    assert {*found.labels.tolist()} == {*detect_image(here, image, proposals).labels.tolist()}


@pytest.mark.cuda
def test_a_compressed_head_gives_what_it_gives_on_a_cpu(cuda_device):
    def hidden(device: torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        model = build_network("tiny", CLASSES).eval()
        pooled = torch.rand(5, model.head.fc6.in_features)
        compress(model.to(device), {"fc6": 64, "fc7": 32})
        with torch.no_grad():
            return model.head(pooled.to(device)).cpu()

    there, here = hidden(cuda_device), hidden(torch.device("cpu"))
    torch.testing.assert_close(there, here, rtol=ROUNDED, atol=ROUNDED * float(here.abs().max()))
