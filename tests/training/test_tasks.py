"""Training without box regression, and box regression as a stage of its own (paper, table 6)."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.voc import load_voc
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.ops import clip_boxes_to_image
from fastrcnn_engine.training import load_checkpoint, load_network, train
from fastrcnn_engine.training.loop import multi_task_loss

from .small import own_network
from .test_loop import assert_same_checkpoint


def run(config, **options):
    return train(config, model=own_network(**options), progress=False)


def log_of(result):
    return [json.loads(line) for line in result.log.read_text().splitlines()]


def stages(voc, tmp_path, **options):
    """A run without box regression, and the box regression trained after it."""
    first = replace(voc, tasks="classification", output=tmp_path / "classification")
    second = replace(
        voc, tasks="boxes", init=first.output / "checkpoint.pt", output=tmp_path / "boxes", seed=4
    )
    return train(first, progress=False, **options), train(second, progress=False)


def test_a_task_that_is_not_learned_has_no_loss_and_no_gradient():
    torch.manual_seed(0)
    logits, deltas = torch.randn(6, 3), torch.randn(6, 12)
    labels, targets = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, 4)
    both = multi_task_loss(logits.requires_grad_(), deltas.requires_grad_(), labels, targets)
    assert both[0] > 0 and both[1] > 0
    cls, box = multi_task_loss(logits, deltas, labels, targets, "classification")
    assert torch.equal(cls, both[0]) and box == 0 and not box.requires_grad
    cls, box = multi_task_loss(logits, deltas, labels, targets, "boxes")
    assert torch.equal(box, both[1]) and cls == 0 and not cls.requires_grad


def test_classification_alone_leaves_the_box_regression_untouched(voc):
    before = own_network().state_dict()
    result = run(replace(voc, tasks="classification"))
    after = result.model.state_dict()
    for name in ("bbox_pred.weight", "bbox_pred.bias"):
        assert torch.equal(after[name], before[name]), name  # no decay either
    assert load_checkpoint(result.checkpoint)["network"]["frozen"] == ["backbone.first"]
    for name in ("cls_score.weight", "head.fc6.weight", "backbone.second.weight"):
        assert not torch.equal(after[name], before[name]), name
    for line in log_of(result):
        assert line["loss_box"] == 0 and line["loss"] == line["loss_cls"] > 0


@pytest.mark.parametrize("first", ["classification", "boxes"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_model_of_one_task_learns_both_afterwards(voc, tmp_path, first, loaded):
    init = run(voc).checkpoint if first == "boxes" else None
    before = run(replace(voc, tasks=first, init=init, output=tmp_path / "first"))
    model = before.model
    if loaded:
        model = load_network(before.checkpoint, model=own_network())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    after = train(replace(voc, output=tmp_path / "both"), model=model, progress=False)
    for name, value in after.model.state_dict().items():
        if name.endswith(".weight"):
            assert torch.equal(value, weights[name]) == name.startswith("backbone.first"), name


def test_after_a_training_that_cannot_begin_nothing_rests(voc):
    init, model = run(voc).checkpoint, own_network()
    model.freeze(["bbox_pred"])
    with pytest.raises(ValueError, match="nothing of the model learns: what tasks leaves to learn"):
        train(
            replace(voc, tasks="boxes", init=init, output=voc.output / "boxes"),
            model=model, progress=False,
        )  # fmt: skip
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert model.resting == () and learning == {"backbone", "head", "cls_score"}


def test_what_the_boxes_teach_the_features_is_missing(voc):
    # Same seed, same batches: the first loss is the same, the features learned are not.
    voc = replace(voc, log_every=1)
    both = run(replace(voc, output=voc.output / "both"))
    alone = run(replace(voc, output=voc.output / "alone", tasks="classification"))
    assert log_of(both)[0]["loss_cls"] == log_of(alone)[0]["loss_cls"]
    assert not torch.equal(both.model.head.fc6.weight, alone.model.head.fc6.weight)


def test_a_detector_without_box_regression_keeps_the_proposals(voc):
    result = train(replace(voc, tasks="classification"), progress=False)
    record = load_voc(voc.data, "train").records[0]
    image, proposals = load_image(record.image_path), ProposalStore(voc.proposals)["first"]
    for model in (result.model, load_network(result.checkpoint)):
        assert not model.box_regression
        found = detect_image(model, image, proposals, score_threshold=0.0)
        kept = clip_boxes_to_image(proposals, image.shape[:2], inclusive=True)[found.rows]
        np.testing.assert_array_equal(found.boxes, kept)
    assert load_checkpoint(result.checkpoint)["config"]["tasks"] == "classification"


def test_box_regression_as_a_stage_changes_nothing_else(voc, tmp_path):
    # tiny normalises over batches: its running statistics must stay too.
    first, second = stages(voc, tmp_path)
    before, after = first.model.state_dict(), second.model.state_dict()
    for name, value in after.items():
        assert torch.equal(value, before[name]) != name.startswith("bbox_pred."), name
    assert second.model.box_regression and load_network(second.checkpoint).box_regression
    for line in log_of(second):
        assert line["loss_cls"] == 0 and line["loss"] == line["loss_box"] > 0
    saved = load_checkpoint(second.checkpoint)["config"]
    assert (saved["tasks"], saved["init"]) == ("boxes", str(first.checkpoint))


def test_the_stage_resumes_bit_for_bit(voc, tmp_path):
    first = run(replace(voc, tasks="classification"))
    stage = replace(
        voc, tasks="boxes", init=first.checkpoint, iterations=6, checkpoint_every=3,
        learning_rate_steps=(5,),
    )  # fmt: skip
    whole = run(replace(stage, output=tmp_path / "whole"))
    parts = replace(stage, output=tmp_path / "parts")
    run(replace(parts, iterations=3))
    first.checkpoint.unlink()  # read already
    resumed = run(replace(parts, resume=True))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)


def test_the_stage_lowers_the_box_loss(voc, tmp_path):
    voc = replace(voc, iterations=40, log_every=10, learning_rate_steps=(39,))
    _, second = stages(voc, tmp_path)
    losses = [line["loss_box"] for line in log_of(second)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_starts_from_weights_and_preprocessing_of_a_checkpoint(voc, tmp_path):
    model = own_network(seed=1)
    model.preprocessing = replace(model.preprocessing, channel_order="RGB", std=(50.0,) * 3)
    first = train(replace(voc, iterations=2), model=model, progress=False)
    # A rate that moves nothing shows what the run began with.
    second = run(
        replace(voc, init=first.checkpoint, output=tmp_path / "next", learning_rate=1e-30,
                short_side=(60, 72), iterations=1)
    )  # fmt: skip
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]), name
    assert second.model.preprocessing == replace(first.model.preprocessing, short_side=(60, 72))


def test_a_start_on_other_data_predicts_what_the_checkpoint_does(voc, tmp_path):
    first = run(voc)
    annotations = voc.data / "Annotations"
    for path in annotations.glob("*.xml"):  # leaves too thin to learn from, and other bricks
        tree = ElementTree.parse(path)
        for thing in tree.findall("object"):
            box = thing.find("bndbox")
            is_leaf = thing.findtext("name") == "leaf"
            box.find("xmin").text = str(float(box.findtext("xmax")) - 0.5) if is_leaf else "15"
        tree.write(path)
    second = run(
        replace(voc, init=first.checkpoint, output=tmp_path / "next", learning_rate=1e-30,
                iterations=1)
    )  # fmt: skip
    one, other = first.model, second.model
    assert not torch.equal(one.delta_std, other.delta_std)
    leaf = 4 * (1 + one.classes.index("leaf"))
    assert torch.equal(one.delta_std[leaf : leaf + 4], other.delta_std[leaf : leaf + 4])
    hidden = torch.randn(5, one.bbox_pred.in_features)
    predicted = [model.unnormalise(model.bbox_pred(hidden)) for model in (one, other)]
    torch.testing.assert_close(*predicted)


def test_a_checkpoint_that_does_not_fit_is_refused(voc, tmp_path):
    with pytest.raises(ValueError, match=r"init: checkpoint .*none\.pt does not exist"):
        run(replace(voc, init=tmp_path / "none.pt"))
    first = run(replace(voc, iterations=1))
    elsewhere = replace(voc, init=first.checkpoint, output=tmp_path / "next")
    with pytest.raises(ValueError, match="the network 'custom', whose .* 'tiny'") as error:
        train(elsewhere, progress=False)
    assert len(str(error.value)) < len(str(first.checkpoint)) + 150  # not a list of all layers
    content = load_checkpoint(first.checkpoint)
    content["network"]["classes"] = ["brick", "stone"]
    torch.save(content, first.checkpoint)
    with pytest.raises(
        ValueError, match=r"knows \['brick', 'stone'\], the data set has .*docs/training.md"
    ):
        run(elsewhere)
    content["network"]["classes"] = ["leaf", "brick"]
    torch.save(content, first.checkpoint)
    with pytest.raises(ValueError, match="give classes in the order of the checkpoint"):
        run(elsewhere)
