"""The training loop on a small data set: resuming, freezing, stopping, learning."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.preparation import Preprocessing, prepare_image
from fastrcnn_engine.data.proposals import ProposalStore, write_proposals
from fastrcnn_engine.data.voc import load_voc
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.models import build_network, compress
from fastrcnn_engine.models.paper import PAPER_NETWORKS
from fastrcnn_engine.ops import decode_boxes
from fastrcnn_engine.training import batches, loop, resume, stopwatch, train
from fastrcnn_engine.training.batches import ImageCache, make_batch
from fastrcnn_engine.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from fastrcnn_engine.training.interrupt import Interrupt
from fastrcnn_engine.training.resume import data_fingerprint
from fastrcnn_engine.training.sampling import drawn_boxes, sample_batch
from models import caffemodel_files
from models.small import small_network

from .small import CLASSES, COLOURS, assert_same_checkpoint, lines_of, own_network


def run(config, **options):
    return train(config, model=own_network(), progress=False, **options)


def log_of(result):
    return [json.loads(line) for line in result.log.read_text().splitlines()]


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(voc, tmp_path):
    # Dropout is on, the data order crosses an epoch, and the rate drops after the interruption.
    voc = replace(voc, iterations=8, checkpoint_every=4, learning_rate_steps=(6,))
    whole = run(replace(voc, output=tmp_path / "whole"))
    parts = replace(voc, output=tmp_path / "parts")
    run(replace(parts, iterations=4))
    torch.rand(17)  # another user of the generator must not matter
    resumed = run(replace(parts, resume=True))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)
    timing = {"images_per_second"}
    for one, two in zip(log_of(whole), log_of(resumed), strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {
            k: v for k, v in two.items() if k not in timing
        }


def test_lines_logged_after_the_checkpoint_are_not_logged_twice(voc):
    first = run(replace(voc, iterations=6, checkpoint_every=3, learning_rate_steps=(5,)))
    content = torch.load(first.checkpoint, weights_only=True)
    assert content["iteration"] == 6
    resumed = run(replace(voc, iterations=8, resume=True, learning_rate_steps=(5,)))
    assert [line["iteration"] for line in log_of(resumed)] == [2, 4, 6, 8]


def test_a_longer_run_keeps_the_steps_of_the_first(voc):
    first = run(replace(voc, iterations=6))
    assert load_checkpoint(first.checkpoint)["config"]["learning_rate_steps"] == [4]
    resumed = run(replace(voc, iterations=20, resume=True))
    assert load_checkpoint(resumed.checkpoint)["config"]["learning_rate_steps"] == [4]
    assert log_of(resumed)[-1]["learning_rate"] == pytest.approx(0.001)


def test_resume_goes_on_where_the_files_have_moved(voc, tmp_path):
    run(replace(voc, iterations=2))
    voc.data.rename(tmp_path / "moved")
    voc.proposals.rename(tmp_path / "moved.npz")
    moved = replace(voc, data=tmp_path / "moved", proposals=tmp_path / "moved.npz")
    assert run(replace(moved, iterations=4, resume=True)).iterations == 4


def test_resume_refuses_other_proposals_and_other_objects(voc, tmp_path):
    run(replace(voc, iterations=2))
    resumed = replace(voc, iterations=4, resume=True)
    store = ProposalStore(voc.proposals)
    boxes = {image_id: store[image_id] for image_id in store}
    first = boxes["first"]
    for others in (first[1:], first[::-1]):  # fewer; as many
        write_proposals(tmp_path / "others.npz", (boxes | {"first": others}).items())
        with pytest.raises(ValueError, match="images, objects or proposals are not those"):
            run(replace(resumed, proposals=tmp_path / "others.npz"))
    annotation = voc.data / "Annotations" / "second.xml"
    annotation.write_text(annotation.read_text().replace("<xmin>6<", "<xmin>7<"))
    with pytest.raises(ValueError, match="images, objects or proposals are not those"):
        run(resumed)


def test_what_is_learned_from_is_boxes_labels_and_crowds(voc):
    records, store = load_voc(voc.data, "train", CLASSES).records, ProposalStore(voc.proposals)
    first = records[0]
    others = (
        {"labels": 3 - first.labels}, {"boxes": first.boxes + 1}, {"image_id": "third"},
        {"crowd": np.array([True, False])}, {"crowd": np.array([False, True])},
    )  # fmt: skip
    known = {data_fingerprint([replace(first, **other)], store) for other in ({}, *others)}
    assert len(known) == 1 + len(others)


def test_resume_refuses_fewer_iterations_than_were_done(voc):
    before = run(replace(voc, iterations=4)).checkpoint.read_bytes()
    with pytest.raises(ValueError, match="iterations is 3, and it has 4 behind it already"):
        run(replace(voc, iterations=3, resume=True))
    assert (voc.output / "checkpoint.pt").read_bytes() == before
    assert run(replace(voc, iterations=4, resume=True)).iterations == 4


def test_resume_prepares_images_as_before(voc):
    # The preprocessing comes with pre-trained weights, which a resumed run does not read again.
    model = own_network()
    model.preprocessing = replace(model.preprocessing, channel_order="RGB", std=(50.0,) * 3)
    train(replace(voc, iterations=2), model=model, progress=False)
    resumed = run(replace(voc, iterations=4, resume=True))
    assert resumed.model.preprocessing.std == (50.0, 50.0, 50.0)
    assert resumed.model.preprocessing.channel_order == "RGB"


@pytest.fixture
def ctrl_c():
    """Sends Ctrl-C to this process, which takes it as a shell's foreground job would."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_finishes_the_iteration_and_keeps_it(voc, tmp_path, ctrl_c):
    # The checkpoint at the boundary is one an uninterrupted run can be continued from exactly.
    voc = replace(voc, iterations=6, checkpoint_every=6, log_every=1)
    whole = run(replace(voc, output=tmp_path / "whole"))

    def press(line):
        if line["iteration"] == 3:
            ctrl_c()

    stopped = replace(voc, output=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt, match="resume goes on from iteration 3"):
        run(stopped, on_log=press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert load_checkpoint(stopped.output / "checkpoint.pt")["iteration"] == 3
    resumed = run(replace(stopped, resume=True))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)


def test_a_second_ctrl_c_interrupts_at_once(ctrl_c):
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        ctrl_c()
        assert interrupt.asked
        ctrl_c()
        pytest.fail("the second one was swallowed")


def test_a_kill_on_top_of_ctrl_c_is_no_second_one(ctrl_c):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt) as stopped, Interrupt():
        ctrl_c()
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does
    assert stopped.value.number == signal.SIGINT


def test_ctrl_c_at_the_end_of_the_block_is_not_lost(ctrl_c, monkeypatch):
    real, late = signal.signal, []

    def restore(number, handler):
        if number == signal.SIGINT and handler is signal.default_int_handler and not late:
            late.append(number)
            ctrl_c()  # just before the handler is gone
        return real(number, handler)

    with pytest.raises(KeyboardInterrupt) as stopped, Interrupt():
        monkeypatch.setattr(signal, "signal", restore)
    assert late and stopped.value.number == signal.SIGINT


def test_ctrl_c_after_the_last_iteration_is_not_lost(ctrl_c):
    with pytest.raises(KeyboardInterrupt), Interrupt():
        ctrl_c()


def test_ctrl_c_stays_ignored_in_a_background_job(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        ctrl_c()
        assert not interrupt.asked


def test_a_line_cut_off_in_the_log_is_dropped(voc):
    first = run(replace(voc, iterations=4))
    with open(first.log, "a") as file:
        file.write('{"iteration": 5, "lo')
    resumed = run(replace(voc, iterations=6, resume=True))
    assert [line["iteration"] for line in log_of(resumed)] == [2, 4, 6]


def test_weights_and_a_model_of_ones_own_do_not_go_together(voc, tmp_path):
    (tmp_path / "x.pth").touch()
    with pytest.raises(ValueError, match="load those of a model of your own before the training"):
        run(replace(voc, network="vgg16", weights=tmp_path / "x.pth"))
    with pytest.raises(ValueError, match="freeze_to is 'conv1'; a model of your own has its"):
        run(replace(voc, network="vgg16", freeze_to="conv1"))


def test_a_model_whose_stride_is_not_its_backbones_does_not_learn(voc):
    model = own_network()
    model.stride = 8
    with pytest.raises(ValueError, match="stride is 8, but the backbone makes a map of 64 x 64"):
        train(voc, model=model, progress=False)
    assert not (voc.output / "checkpoint.pt").exists()


def test_models_that_do_not_learn_are_refused(voc):
    svm, small = own_network(), own_network()
    svm.classifier = "svm"
    compress(small, ranks={"fc6": 4})
    for model, says in (
        (svm, "the model scores by SVMs; it is for detection"),
        (small, "the model is compressed; it is for detection"),
        (torch.nn.DataParallel(own_network()), "must be a FastRCNN, got DataParallel"),
        (own_network().double(), "must be float32, got float64"),
        (build_network("tiny", CLASSES).half(), "must be float32, got float16"),
        (own_network().requires_grad_(False), "nothing of the model learns"),
    ):
        with pytest.raises(ValueError, match=says):
            train(voc, model=model, progress=False)
    assert not (voc.output / "checkpoint.pt").exists()


def test_torchs_default_type_is_told_where_it_is_another(voc):
    checkpoint = train(voc, progress=False).checkpoint
    torch.set_default_dtype(torch.float64)
    try:
        for call in (
            lambda: train(replace(voc, output=voc.output / "b"), progress=False),
            lambda: load_network(checkpoint),
        ):
            with pytest.raises(ValueError, match="got float64: .*set_default_dtype"):
                call()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_run_learns_within_no_grad(voc):
    with torch.no_grad():
        assert lines_of(run(voc).log) == lines_of(run(replace(voc, output=voc.output / "b")).log)


def test_labels_of_a_data_set_from_elsewhere_are_checked(voc):
    good = load_voc(voc.data, "train", CLASSES)
    for shift, says in ((-1, r"label 0 is not in 1\.\."), (0.5, "labels must be integers, got fl")):
        records = [replace(r, labels=r.labels + shift) for r in good.records]
        with pytest.raises(ValueError, match=f"dataset: image '\\w+'.*{says}"):
            train(voc, dataset=replace(good, records=records), progress=False)


def test_tiny_names_the_image_of_a_batch_of_one_roi(voc):
    voc = replace(voc, rois_per_batch=1, images_per_batch=1, foreground_fraction=1.0)
    with pytest.raises(ValueError, match=r"iteration 1: the batch of \w+ has 1 RoI; tiny"):
        train(voc, progress=False)
    # A part of a batch is normalised by itself.
    voc = replace(voc, rois_per_batch=2, images_per_batch=2, accumulate=2)
    with pytest.raises(ValueError, match=r"of \w+, \w+ has 1 RoI in one of its 2 parts; tiny"):
        train(voc, progress=False)


def test_resume_refuses_other_settings_and_names_them(voc):
    run(voc)
    for name, other, says in (
        ("learning_rate", 0.02, r"0\.01, is 0\.02"),
        ("learning_rate_steps", (2,), r"\[4\], is \[2\]"),
        ("seed", 4, "3, is 4"),
        ("flip", False, "True, is False"),
        ("amp", "bf16", "None, is 'bf16'"),
        ("accumulate", 2, "1, is 2"),
        ("difficult", False, "True, is False"),
    ):
        with pytest.raises(ValueError, match=f"cannot resume from .*: {name} was {says}"):
            run(replace(voc, resume=True, **{name: other}))
    # What decides nothing of the result may differ.
    run(replace(voc, resume=True, iterations=7, learning_rate_steps=(4,), log_every=1, keep=1,
                checkpoint_every=9, loader_threads=2, cache_megabytes=0, profile=True))  # fmt: skip


def test_a_model_of_ones_own_goes_by_its_own_name_and_by_the_recipe_that_is_asked_for(voc):
    config = replace(voc, iterations=2, network="vgg16")
    path = run(config).checkpoint
    content = load_checkpoint(path)
    assert content["config"]["network"] == content["network"]["name"] == "custom"
    assert content["config"]["background_low"] == 0.1  # vgg16's
    run(replace(config, iterations=4, resume=True))
    with pytest.raises(ValueError, match="network was 'custom', is 'tiny'"):
        train(replace(voc, background_low=0.1, resume=True), progress=False)


def test_resume_refuses_classes_of_other_names(voc):
    """Their boxes and labels are the same."""
    run(replace(voc, iterations=2))
    for path in (voc.data / "Annotations").iterdir():
        path.write_text(path.read_text().replace("leaf", "tree"))
    model = own_network()
    model.classes = ("brick", "tree")
    with pytest.raises(ValueError, match=r"classes were \['brick', 'leaf'\], are .*'tree'\]"):
        train(replace(voc, iterations=4, resume=True), model=model, progress=False)


def test_resume_without_a_checkpoint_says_so(voc):
    with pytest.raises(ValueError, match="checkpoint.pt does not exist.*begin again without"):
        run(replace(voc, resume=True))


def test_resume_refuses_a_file_that_is_of_no_training_under_way(voc):
    save_checkpoint(voc.output / "checkpoint.pt", own_network())
    with pytest.raises(ValueError, match="lacks config, iter.*init begins with"):
        run(replace(voc, resume=True))


def test_frozen_layers_do_not_move_and_all_others_do(voc):
    before = {k: v.clone() for k, v in own_network().state_dict().items()}
    model = run(voc).model
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        # Frozen means its batch statistics too; the target statistics are set from the data.
        assert same == name.startswith("backbone.first"), name
    assert not any(p.requires_grad for p in model.backbone.first.parameters())


@pytest.fixture
def small_paper_networks(monkeypatch):
    """The networks of the paper, as the training builds them, with a few channels each."""
    for name in PAPER_NETWORKS:
        monkeypatch.setitem(PAPER_NETWORKS, name, partial(small_network, name))


@pytest.mark.parametrize(
    ("network", "freeze_to", "still"),
    [
        ("vgg16", "conv2", ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]),
        ("caffenet", "conv1", ["conv1"]),
        ("vgg_cnn_m_1024", "conv5", ["conv1", "conv2", "conv3", "conv4", "conv5"]),
        ("caffenet", "fc6", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6"]),
        ("vgg16", "none", []),
    ],
)
def test_frozen_stages_do_not_move_and_all_others_do(
    voc, small_paper_networks, network, freeze_to, still
):
    voc = replace(voc, network=network, freeze_to=freeze_to, background_low=0.0, iterations=2)
    torch.manual_seed(voc.seed)
    before = build_network(network, CLASSES).state_dict()
    result = train(voc, progress=False)
    for name, value in result.model.state_dict().items():
        if not name.startswith("delta_"):  # set from the data
            assert torch.equal(value, before[name]) == (name.split(".")[-2] in still), name
    # Who loads the file gets the same layers frozen.
    loaded = load_network(result.checkpoint)
    assert loaded.frozen == result.model.frozen
    assert [p.requires_grad for p in loaded.parameters()] == [
        p.requires_grad for p in result.model.parameters()
    ]


def test_a_resumed_run_keeps_its_stages_frozen(voc, small_paper_networks, tmp_path):
    voc = replace(voc, network="caffenet", freeze_to="conv4", background_low=0.0, iterations=4,
                  checkpoint_every=2, learning_rate_steps=(3,))  # fmt: skip
    whole = train(replace(voc, output=tmp_path / "whole"), progress=False)
    parts = replace(voc, output=tmp_path / "parts")
    train(replace(parts, iterations=2), progress=False)
    assert_same_checkpoint(
        whole.checkpoint, train(replace(parts, resume=True), progress=False).checkpoint
    )
    with pytest.raises(ValueError, match="freeze_to was 'conv4', is 'conv5'"):
        train(replace(parts, resume=True, freeze_to="conv5"), progress=False)


def test_pretrained_weights_of_a_caffemodel_are_what_training_starts_from(
    voc, small_paper_networks, tmp_path
):
    layers = {}
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        inputs = 3 if name == "conv1" else 4
        layers[name] = [np.full((4, inputs, 3, 3), 0.25, "f4"), np.full(4, 0.5, "f4")]
    (tmp_path / "net.caffemodel").write_bytes(caffemodel_files.network(layers, legacy=True))
    voc = replace(voc, network="caffenet", weights=tmp_path / "net.caffemodel", iterations=1,
                  learning_rate=1e-30, freeze_to="conv2", background_low=0.0)  # fmt: skip
    result = train(voc, progress=False)
    assert (result.model.backbone.conv5.weight == 0.25).all()
    assert (result.model.backbone.conv5.bias == 0.5).all()
    saved = load_checkpoint(result.checkpoint)["network"]["preprocessing"]
    assert saved["channel_order"] == "BGR" and saved["mean"] == [102.9801, 115.9465, 122.7717]
    rows = {change.layer: change for change in result.layers}
    assert rows["backbone.conv2"].detail.endswith(", frozen")
    assert rows["head.fc6"].action == "missing"
    with pytest.raises(ValueError, match="style is 'torchvision', but .*net.caffemodel"):
        train(replace(voc, weights_style="torchvision"), progress=False)


def test_parameter_groups_are_those_of_the_original(voc):
    model = own_network()
    optimiser = loop.build_optimiser(model, voc.resolved())
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [{names[id(p)] for p in g["params"]} for g in optimiser.param_groups]
    layers = ("backbone.second", "head.fc6", "head.fc7", "cls_score", "bbox_pred")
    assert groups == [{f"{x}.weight" for x in layers}, {f"{x}.bias" for x in layers}]
    assert [g["weight_decay"] for g in optimiser.param_groups] == [0.0005, 0.0]
    assert [g["rate_factor"] for g in optimiser.param_groups] == [1.0, 2.0]
    assert optimiser.defaults["momentum"] == 0.9


def test_gains_of_normalisation_do_not_decay(voc):
    model = build_network("tiny", CLASSES)
    optimiser = loop.build_optimiser(model, replace(voc, momentum=0.5).resolved())
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [{names[id(p)] for p in g["params"]} for g in optimiser.param_groups]
    assert all(name.endswith(".bias") for name in groups[1])
    assert {"backbone.stage8.0.norm1.weight", "head.norm6.weight"} <= groups[2]
    assert {"backbone.stage8.0.conv1.weight", "head.fc6.weight"} <= groups[0]
    assert [g["weight_decay"] for g in optimiser.param_groups] == [0.0005, 0.0, 0.0]
    assert [g["rate_factor"] for g in optimiser.param_groups] == [1.0, 2.0, 1.0]
    assert optimiser.defaults["momentum"] == 0.5


def test_schedule_reaches_the_optimiser(voc):
    voc = replace(voc, iterations=6, log_every=1, learning_rate_steps=(2, 4), warmup=1)
    rates = []
    run(voc, on_log=lambda line: rates.append(line["learning_rate"]))
    np.testing.assert_allclose(rates, [0.005, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_non_finite_loss_stops_and_names_iteration_and_images(voc, tmp_path):
    voc = replace(voc, learning_rate=1e12, iterations=50)
    with pytest.raises(FloatingPointError, match=r"iteration \d+ .* on images \w+, \w+") as error:
        run(voc)
    ids = {r.image_id for r in load_voc(voc.data, "train").records}
    named = str(error.value).split("on images ")[1].split(";")[0].split(", ")
    assert len(named) == 2 and set(named) <= ids
    assert "; lower learning_rate" in str(error.value)
    assert "checkpoint.pt was not written to" in str(error.value)


def test_non_finite_loss_of_a_network_that_wants_weights_says_so(voc, monkeypatch):
    small = partial(build_network, "tiny")
    monkeypatch.setattr(resume, "build_network", lambda name, classes, freeze_to: small(classes))
    voc = replace(voc, network="vgg16", learning_rate=1e12, iterations=50)
    with pytest.raises(FloatingPointError, match="; give vgg16 pre-trained weights, lower"):
        train(voc, progress=False)


def test_missing_proposals_name_the_image(voc, tmp_path):
    write_proposals(tmp_path / "less.npz", [("first", np.zeros((0, 4), dtype=np.float32))])
    with pytest.raises(ValueError, match="second"):
        run(replace(voc, proposals=tmp_path / "less.npz"))


def test_image_without_objects_and_without_proposals_is_left_out_and_told(voc, tmp_path):
    store = ProposalStore(voc.proposals)
    boxes = {r.image_id: store[r.image_id] for r in load_voc(voc.data, "train").records}
    boxes["empty"] = np.zeros((0, 4), dtype=np.float32)
    write_proposals(tmp_path / "other.npz", boxes.items())
    result = run(replace(voc, proposals=tmp_path / "other.npz"))
    assert result.unusable == ["empty"]


def test_difficult_objects_may_be_left_out_as_if_they_were_not_there(voc, tmp_path):
    path = voc.data / "Annotations" / "first.xml"
    objects = path.read_text()
    path.write_text(objects.replace("<difficult>0", "<difficult>1", 1))
    known = replace(voc, classes=CLASSES)
    alike = run(replace(known, output=tmp_path / "with"))
    without = run(replace(known, output=tmp_path / "without", difficult=False))
    path.write_text(re.sub("<object>.*?</object>", "", objects, count=1))
    gone = run(replace(known, output=tmp_path / "gone"))
    assert_same_checkpoint(without.checkpoint, gone.checkpoint, "/config/difficult")
    weights = [result.model.state_dict()["cls_score.weight"] for result in (alike, without)]
    assert not torch.equal(*weights)


def test_an_image_with_difficult_objects_alone_is_left_out_with_them(voc, tmp_path):
    """Its proposals on them would be background, as those of an image without objects are."""
    known = replace(voc, classes=CLASSES, difficult=False)
    hard = voc.data / "Annotations" / "second.xml"
    hard.write_text(hard.read_text().replace("<difficult>0", "<difficult>1"))
    result = run(replace(known, output=tmp_path / "hard"))
    (told,) = result.problems  # the image without objects stays: it is background
    assert told == "second: left out, as all its objects are difficult"
    split = voc.data / "ImageSets/Main/train.txt"
    split.write_text(split.read_text().replace("second\n", ""))
    gone = run(replace(known, output=tmp_path / "gone"))
    assert_same_checkpoint(result.checkpoint, gone.checkpoint)
    split.write_text("second\nempty\n")
    with pytest.raises(ValueError, match="all objects of train are difficult, and --no-difficult"):
        run(known)


def test_log_counts_rois(voc):
    lines = log_of(run(replace(voc, background_low=0.0)))
    for line in lines:
        assert 0 < line["foreground"] <= 32
        assert line["foreground"] < line["rois"] <= 128
        assert line["loss"] == pytest.approx(line["loss_cls"] + line["loss_box"])


def test_targets_lead_from_every_foreground_roi_to_its_object_in_the_picture(voc):
    # Twice the size, mirrored and not: decoded boxes must frame the rectangle that was drawn.
    voc = replace(voc, short_side=144, max_side=192).resolved()
    model = own_network()
    model.preprocessing = Preprocessing(
        "RGB", mean=(0, 0, 0), std=(1, 1, 1), short_side=144, max_side=192
    )
    records = load_voc(voc.data, "train").records
    entries, _ = loop.build_roidb(records, ProposalStore(voc.proposals), voc)
    mean, std = loop.target_statistics(entries, 2, flip=True)
    model.delta_mean.copy_(torch.from_numpy(mean).flatten())
    model.delta_std.copy_(torch.from_numpy(std).flatten())
    checked = 0
    for iteration in range(8):  # two epochs
        batch = make_batch(iteration, entries, ImageCache(2**20), model, voc)
        for row in torch.nonzero(batch.labels)[:, 0]:
            label, roi = int(batch.labels[row]), batch.rois[row]
            delta = batch.targets[row].numpy() * std[label] + mean[label]
            box = decode_boxes(torch.from_numpy(delta)[None], roi[None, 1:])[0]
            x1, y1, x2, y2 = (round(value) for value in box.tolist())
            image = batch.images[int(roi[0])]
            colour = torch.tensor(COLOURS[CLASSES[label - 1]]).float()[:, None, None]
            # The resized border is a pixel or two wide.
            inside = image[:, y1 + 3 : y2 - 2, x1 + 3 : x2 - 2]
            assert (inside - colour).abs().max() < 1
            beside = image[:, (y1 + y2) // 2, [x1 - 4, x2 + 5]]
            assert (beside - colour[:, 0]).abs().amax(dim=0).min() > 20
            checked += 1
    assert checked > 100


def test_batches_do_not_depend_on_the_cache(voc):
    # A cache of no bytes decodes every image each time.
    small = replace(voc, cache_megabytes=0, output=voc.output / "none")
    assert_same_losses(run(voc), run(small))


def test_images_are_decoded_once_as_long_as_there_is_room(voc, monkeypatch):
    first, second, *_ = load_voc(voc.data, "train").records
    size, decoded = load_image(first.image_path).nbytes, []  # all are of one size
    monkeypatch.setattr(batches, "load_image", lambda p: decoded.append(p.stem) or load_image(p))
    for room, expected in ((2, 2), (1, 4), (0, 6)):
        cache, decoded[:] = ImageCache(room * size), []
        for record in 3 * [first, second]:
            assert np.array_equal(cache[record], load_image(record.image_path))
        assert len(decoded) == expected, room


def first_batches(config, count, **process):
    """The first batches of a run, their entries, and the network they were made for."""
    config = config.resolved()
    model = own_network()
    model.preprocessing = replace(
        model.preprocessing, short_side=config.short_side, max_side=config.max_side
    )
    records = load_voc(config.data, "train").records
    entries, _ = loop.build_roidb(records, ProposalStore(config.proposals), config)
    cache = ImageCache(2**20)
    made = [make_batch(i, entries, cache, model, config, **process) for i in range(count)]
    return made, entries, model.preprocessing


def test_each_process_prepares_its_part_of_the_batch(voc):
    """The levels of a pyramid and what takes the place of a bad image are those of one process."""
    path = voc.data / "JPEGImages" / "third.png"
    path.write_bytes(path.read_bytes()[:5000])
    voc = replace(voc, short_side=(72, 96), max_side=150, on_bad_image="skip")
    whole, *_ = first_batches(voc, 10)
    shares = [first_batches(voc, 10, process=p, processes=2)[0] for p in (0, 1)]
    instead = set()
    for batch, *own in zip(whole, *shares, strict=True):
        for part, share in zip(batch.parts(2), own, strict=True):
            assert share.image_ids == part.image_ids
            for name in ("rois", "labels", "targets"):
                assert torch.equal(getattr(share, name), getattr(part, name))
            assert torch.equal(share.padded(*batch.images.shape[2:]).images, part.images)
            instead |= set(share.image_ids) if share.skipped else set()
        assert batch.skipped == own[0].skipped + own[1].skipped
    assert len(instead) > 1, "another image each time"


def test_one_scale_makes_the_plain_batch(voc):
    # Put together without anything that knows of several sizes. 10/9 is no number of float32.
    voc = replace(voc, short_side=80, max_side=120)
    made, entries, preprocessing = first_batches(voc, 4)
    for iteration, batch in enumerate(made):
        rois = []
        for n, (entry, flipped, rows) in enumerate(sample_batch(iteration, entries, voc)):
            image = load_image(entry.record.image_path)
            image, scale = prepare_image(image, preprocessing, flip=flipped)
            assert torch.equal(batch.images[n, :, : image.shape[1], : image.shape[2]], image)
            boxes = drawn_boxes(entry, flipped, rows)[0].astype(np.float64) * scale
            rois.append(np.insert(boxes, 0, n, axis=1).astype(np.float32))
        np.testing.assert_array_equal(batch.rois.numpy(), np.concatenate(rois))


def test_several_scales_change_the_size_of_the_images_and_nothing_else(voc):
    scales = {72: 1.0, 108: 1.5, 144: 2.0}  # the images are 96 x 72
    plain, _, _ = first_batches(voc, 12)
    made, _, _ = first_batches(replace(voc, short_side=tuple(scales), max_side=200), 12)
    drawn = []
    for one, many in zip(plain, made, strict=True):
        assert one.image_ids == many.image_ids
        assert torch.equal(one.labels, many.labels) and torch.equal(one.targets, many.targets)
        sides = []
        for n in range(2):
            mine = many.rois[:, 0] == n
            scale = many.rois[mine][0, 1:].sum() / one.rois[mine][0, 1:].sum()
            side = round(72 * scale.item())
            # Products of float32 coordinates, rounded once.
            torch.testing.assert_close(
                many.rois[mine, 1:], one.rois[mine, 1:] * scales[side], rtol=2**-23, atol=0
            )
            # Padding is 0, and no row of a picture is.
            height, width = side, side * 96 // 72
            assert many.images[n, :, height - 1, :width].any()
            assert not many.images[n, :, height:].any() and not many.images[n, :, :, width:].any()
            sides.append(side)
        assert many.images.shape[2] == max(sides)
        drawn.append(tuple(sides))
    assert set(scales) == {side for sides in drawn for side in sides}
    assert any(one != two for one, two in drawn)


def test_a_run_of_several_scales_resumes_bit_for_bit_and_keeps_them(voc, tmp_path):
    voc = replace(
        voc, short_side=(72, 96, 120), max_side=150, iterations=6, checkpoint_every=3,
        learning_rate_steps=(5,),
    )  # fmt: skip
    whole = run(replace(voc, output=tmp_path / "whole"))
    parts = replace(voc, output=tmp_path / "parts")
    run(replace(parts, iterations=3))
    resumed = run(replace(parts, resume=True))
    assert_same_checkpoint(whole.checkpoint, resumed.checkpoint)
    saved = load_checkpoint(whole.checkpoint)["network"]["preprocessing"]
    assert (saved["short_side"], saved["max_side"]) == ([72, 96, 120], 150)
    assert resumed.model.preprocessing.short_side == (72, 96, 120)
    with pytest.raises(ValueError, match=r"short_side was \[72, 96, 120\], is \[72, 96\]"):
        run(replace(parts, short_side=(72, 96), resume=True))


def test_the_best_network_is_none_to_go_on_from(voc):
    content = load_checkpoint(run(replace(voc, iterations=2)).checkpoint)
    for name in ("meter", "optimiser", "random_state"):
        del content[name]
    torch.save(content, voc.output / "checkpoint.pt")
    with pytest.raises(ValueError, match="it lacks meter, optimiser, random_state, as best.pt"):
        run(replace(voc, resume=True))


def test_a_data_set_of_another_split_is_refused(voc):
    other = replace(load_voc(voc.data, "train", CLASSES), split="test")
    with pytest.raises(ValueError, match="dataset is of split 'test', config of 'train'"):
        train(voc, dataset=other, progress=False)


def test_other_tasks_are_no_continuation(voc):
    run(replace(voc, tasks="classification"))
    with pytest.raises(ValueError, match="tasks was 'classification', is 'both'"):
        run(replace(voc, resume=True))


def assert_same_losses(one, two):
    assert [line["loss"] for line in log_of(one)] == [line["loss"] for line in log_of(two)]


def test_a_stopwatch_tells_the_seconds_of_an_iteration(monkeypatch):
    clock = Mock(side_effect=[0.0, 1.0, 5.0, 6.0, 8.0, 8.5])
    monkeypatch.setattr(stopwatch.time, "perf_counter", clock)
    watch, network = stopwatch.Stopwatch(torch.device("cpu"), enabled=True), own_network()
    assert watch.means() is None
    watch.mark("loss")
    with watch.watching(network):  # what came before is no part
        watch.mark("loss")
        watch.mark("optimiser")
    watch.iterations = 2
    assert {part: s for part, s in watch.means().items() if s} == {"loss": 1.0, "optimiser": 1.0}
    assert not network.backbone._forward_hooks and not network.head._forward_pre_hooks
    off = stopwatch.Stopwatch(torch.device("cpu"), enabled=False)
    off.iterations = 2
    assert off.means() is None


def test_overfits_one_image_to_ap_1(voc):
    (voc.data / "ImageSets/Main/one.txt").write_text("first\n")
    voc = replace(voc, split="one", iterations=70, learning_rate=0.02, warmup=10, flip=False,
                  log_every=50, short_side=144, max_side=192)  # fmt: skip
    result = train(voc, progress=False)
    dataset = load_voc(voc.data, "one", ("brick", "leaf"))
    record = dataset.records[0]
    found = detect_image(
        result.model, load_image(record.image_path), ProposalStore(voc.proposals)["first"]
    )
    scored = evaluate_voc([record], dataset.classes, {"first": found}, iou_threshold=0.75)
    assert scored.mean_ap == 1.0
    assert log_of(result)[-1]["loss"] < 0.2
