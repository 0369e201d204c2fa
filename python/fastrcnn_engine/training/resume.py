"""What a run starts from: its network, a checkpoint of its own to go on from, another run's."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import Dataset, ImageRecord
from fastrcnn_engine.models import (
    NETWORKS,
    FastRCNN,
    LayerChange,
    build_network,
    ranks_of,
    transform_pretrained,
)
from fastrcnn_engine.training.amp import Amp
from fastrcnn_engine.training.checkpoint import (
    load_checkpoint,
    load_weights,
    restore_random_state,
)
from fastrcnn_engine.training.config import ResolvedConfig, TrainConfig
from fastrcnn_engine.training.distributed import Processes

# What learns nothing when only one task is learned. A head at rest drops no features either.
AT_REST_BY_TASKS = {
    "both": (),
    "classification": ("bbox_pred",),
    "boxes": ("backbone", "head", "cls_score"),
}


def starting_network(
    config: ResolvedConfig, model: FastRCNN | None, classes: tuple[str, ...]
) -> tuple[FastRCNN, list[LayerChange]]:
    """The network as the settings have it at the start, and what became of pre-trained layers."""
    layers: list[LayerChange] = []
    if model is None:
        model = build_network(config.network, classes, freeze_to=config.freeze_to)
        if config.weights is not None and not config.resume:
            layers = transform_pretrained(model, config.weights, config.weights_style)
    elif model.classifier != "softmax" or ranks_of(model):
        kind = "is compressed" if ranks_of(model) else "scores by SVMs"
        raise ValueError(
            f"the model {kind}; it is for detection and does not learn: take the one it was made of"
        )
    elif model.classes != classes:
        raise ValueError(f"the model knows {model.classes}, the data set has {classes}")
    elif model.name not in NETWORKS:  # which have the stride they name
        model.check_parts()
    model.check_types()  # torch's default may be another, too
    if config.init is not None and not config.resume:
        start_from(config.init, model)
    model.box_regression = config.tasks != "classification"
    model.rest(AT_REST_BY_TASKS[config.tasks])
    model.preprocessing = replace(
        model.preprocessing, short_side=config.short_side, max_side=config.max_side
    )
    return model, layers


def data_fingerprint(records: list[ImageRecord], proposals: ProposalStore) -> str:
    """A short hash of what is learned from: image ids, ground truth, proposals."""
    digest = hashlib.sha256()
    for record in records:
        boxes = proposals[record.image_id]
        digest.update(f"{record.image_id} {len(boxes)}\n".encode())
        digest.update(boxes.tobytes())
        digest.update(record.boxes.tobytes() + record.labels.tobytes())
        if record.crowd.any():
            digest.update(record.crowd.tobytes())
    return digest.hexdigest()[:16]


# Settings that may differ between a run and its continuation. A run may become longer and its files
# may move: what is in the data is compared by its fingerprint, and the weights were read already.
FREE_ON_RESUME = {"output", "device", "resume", "iterations", "log_every", "checkpoint_every",
                  "keep", "val_split", "val_every", "on_bad_image", "cache_megabytes",
                  "loader_threads", "profile", "tensorboard", "data", "proposals", "weights",
                  "weights_style", "init"}  # fmt: skip


def start_from(path: Path, model: FastRCNN) -> None:
    """Copy the weights of a checkpoint, and the preprocessing they are used to, into ``model``."""
    content = load_checkpoint(path)
    known = content["network"]["classes"]
    if known != list(model.classes):
        same = sorted(known) == sorted(model.classes)
        raise ValueError(
            f"init: {path} knows {known}, the data set has {list(model.classes)}; "
            + (
                "give classes in the order of the checkpoint"
                if same
                else "other classes begin with its layers from Python: docs/training.md, section 4"
            )
        )
    load_weights(model, content, path)
    model.preprocessing = Preprocessing.from_dict(content["network"]["preprocessing"])


def checked_to_resume(
    path: Path, config: ResolvedConfig, dataset: Dataset, learned_from: str
) -> dict[str, Any]:
    """What is in a checkpoint that a run of these settings, on these data, may go on from.

    learned_from: the data_fingerprint of the data.

    Raises:
        ValueError: other settings, other data, or fewer iterations than it has behind it.
    """
    content = load_checkpoint(path)
    if missing := {"config", "iteration", "learned_from"} - content.keys():
        raise ValueError(
            f"cannot resume from {path}: it lacks {', '.join(sorted(missing))}, so it is not of a "
            "training under way; init begins with its weights"
        )
    if config.iterations < content["iteration"]:
        raise ValueError(
            f"cannot resume from {path}: iterations is {config.iterations}, and it has "
            f"{content['iteration']} behind it already. Give at least as many"
        )
    now, before = config.to_dict(), content["config"]
    changed = [
        f"{key} was {before.get(key)!r}, is {now[key]!r}"
        for key in now
        if key not in FREE_ON_RESUME and before.get(key) != now[key]
    ]
    if content["network"]["classes"] != list(dataset.classes):
        changed.append(f"classes were {content['network']['classes']}, are {list(dataset.classes)}")
    if content["learned_from"] != learned_from:
        changed.append("images, objects or proposals are not those it learned from")
    if changed:
        raise ValueError(
            f"cannot resume from {path}: {'; '.join(changed)}. Give the same settings, or another "
            "output directory for a new run"
        )
    return content


def resume(
    path: Path,
    content: dict[str, Any],
    model: FastRCNN,
    optimiser: torch.optim.Optimizer,
    amp: Amp,
    config: TrainConfig,
    processes: Processes,
) -> None:
    """Put the content of a checkpoint into model, optimiser and generators."""
    load_weights(model, content, path)
    if missing := {"optimiser", "meter", "random_state"} - content.keys():
        raise ValueError(
            f"cannot resume from {path}: it lacks {', '.join(sorted(missing))}, as best.pt does, "
            "so it is not of a training under way; init begins with its weights"
        )
    # Pre-trained weights brought their own with them.
    model.preprocessing = Preprocessing.from_dict(content["network"]["preprocessing"])
    optimiser.load_state_dict(content["optimiser"])
    if amp.scaler is not None:
        amp.scaler.load_state_dict(content["scaler"])
    states = content.get("random_states", [content["random_state"]])
    if len(states) == processes.count:
        restore_random_state(states[processes.rank], processes.device)
    elif processes.rank == 0:
        restore_random_state(states[0], processes.device)
    else:  # another number of processes than before: what is left is another dropout
        seed = (config.seed + content["iteration"]) * 1_000_003 + processes.rank
        torch.manual_seed(seed % 2**64)
