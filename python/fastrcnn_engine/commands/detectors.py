"""What compress, svm and export do: other detectors of a trained one."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.common import (
    check_out_folder,
    check_proposals,
    print_notes,
    resize,
)
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import ImageRecord, collecting
from fastrcnn_engine.evaluation.export import INPUTS, OUTPUTS, export_onnx
from fastrcnn_engine.models import RANKS, FastRCNN
from fastrcnn_engine.models import compress as compress_head
from fastrcnn_engine.options import Compress, Export, Svm
from fastrcnn_engine.training import load_checkpoint, load_network, save_checkpoint, train_svms
from fastrcnn_engine.training.checkpoint import checkpoint_file, path_of_training


def compress(options: Compress) -> None:
    """See options.Compress."""
    console = plain_console()
    if options.rois < 1:
        raise ValueError(f"--rois is {options.rois}; it must be at least 1")
    ranks = {name: rank for name in RANKS if (rank := getattr(options, name)) is not None}
    if options.energy is None:
        ranks = RANKS | ranks
    elif ranks:
        raise ValueError("give either --energy or ranks, --fc6 and --fc7")
    checkpoint = checkpoint_file(options.checkpoint)
    content = load_checkpoint(checkpoint, tensors=False)
    out = _new_checkpoint(options.out or checkpoint.parent / "compressed")
    model = load_network(checkpoint, device=options.device)
    head = model.head
    for layer in compress_head(model, ranks or None, energy=options.energy):
        console.print(
            f"{layer.name}: {layer.outputs} x {layer.inputs}, rank {layer.rank} keeps "
            f"{100 * layer.energy:.2f} % of the squared singular values"
        )
    before, after = (_head_costs(model, one, options.rois) for one in (head, model.head))
    save_checkpoint(out, model, **_of_the_training(content))
    table = Table("", "before", "after", "after / before")
    for name, old in before.items():
        shown = f"{old:,.2f}" if isinstance(old, float) else f"{old:,}"
        new = f"{after[name]:,.2f}" if isinstance(old, float) else f"{after[name]:,}"
        table.add_row(name, shown, new, f"{after[name] / old:.3f}")
    console.print(table)
    console.print(f"checkpoint: {out}", soft_wrap=True)


def svm(options: Svm) -> None:
    """See options.Svm."""
    console = plain_console()
    checkpoint = checkpoint_file(options.checkpoint)
    content = load_checkpoint(checkpoint, tensors=False)
    out = _new_checkpoint(options.out or checkpoint.parent / "svm")
    trained = content.get("config", {})
    paths: list[Path] = []
    for name in ("data", "proposals"):
        path = getattr(options, name) or path_of_training(checkpoint, content, name)
        if path is None:
            raise ValueError(f"{checkpoint} does not say what it was trained on; give --{name}")
        paths.append(path)
    data, proposals = paths
    model = load_network(checkpoint, device=options.device)
    skips = trained.get("on_bad_image") == "skip"  # as the training read them
    split = trained.get("split", "trainval")
    dataset = load_dataset(data, split, model.classes, stated_sizes=skips)
    if not trained.get("difficult", True):
        dataset = dataset.without_difficult()
    store = ProposalStore(proposals)
    check_proposals(console, [dataset], store)
    records, unreadable = dataset.records, []
    if skips:
        records, unreadable = _readable(records)
    table = Table("class", "objects", "hard negatives", "trainings")
    for one in train_svms(model, records, store, seed=trained.get("seed", 3)):
        table.add_row(one.name, str(one.objects), str(one.negatives), str(one.fits))
    save_checkpoint(out, model, **_of_the_training(content))
    console.print(table)
    print_notes(console, "image that cannot be read, left out", unreadable)
    console.print(f"checkpoint: {out}", soft_wrap=True)


def export(options: Export) -> None:
    """See options.Export."""
    console = plain_console()
    checkpoint = checkpoint_file(options.checkpoint)
    out = options.out or checkpoint.parent / "detector.onnx"
    if out.exists() and out.suffix.lower() != ".onnx":
        raise ValueError(f"--out: {out} exists already and is no .onnx file; give another name")
    check_out_folder(out.parent)
    model = load_network(checkpoint)
    resize(model, options)
    export_onnx(
        model, out, score_threshold=options.score_threshold, nms_threshold=options.nms_threshold,
        max_detections=options.max_detections,
    )  # fmt: skip
    table = Table("", "", box=None, show_header=False)
    for name, meaning in (INPUTS | OUTPUTS).items():
        table.add_row(name, meaning)
    console.print(table)
    settings = ", ".join(f"{k} {v}" for k, v in model.preprocessing.to_dict().items())
    console.print(f"preprocessing: {settings}", soft_wrap=True)
    console.print(f"file: {out} ({out.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def _new_checkpoint(folder: Path) -> Path:
    """The checkpoint to write into a folder, which must not hold one."""
    path = folder / "checkpoint.pt"
    check_out_folder(folder)
    if path.exists():
        raise ValueError(f"--out: {path} exists already; give another folder")
    return path


def _readable(records: list[ImageRecord]) -> tuple[list[ImageRecord], list[str]]:
    """Those whose image can be read, and why the others cannot."""
    good: list[ImageRecord] = []
    errors: list[str] = []
    for record in records:
        with collecting(errors):
            load_image(record.image_path)
            good.append(record)
    return good, errors


def _of_the_training(content: dict[str, Any]) -> dict[str, Any]:
    """What eval and detect want to know of it; the optimiser does not fit a changed network."""
    kept = ("config", "proposals_made_with", "iteration", "learned_from")
    return {key: content[key] for key in kept if key in content}


@torch.inference_mode()
def _head_costs(model: FastRCNN, head: torch.nn.Module, rois: int) -> dict[str, int | float]:
    """What ``head`` and the sibling layers cost: the layers that see every RoI."""
    parts = (head, model.cls_score, model.bbox_pred)
    linear = [x for part in parts for x in part.modules() if isinstance(x, torch.nn.Linear)]
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    backbone = sum(p.numel() for p in model.backbone.parameters())
    side = model.pooled_size
    channels = linear[0].in_features // side**2
    pooled = torch.rand((rois, channels, side, side), device=model.delta_mean.device)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        hidden = head(pooled)
        # The number is there only when a GPU has done it all.
        (model.cls_score(hidden).sum() + model.bbox_pred(hidden).sum()).item()
        seconds.append(time.perf_counter() - start)
    return {
        "parameters of the network": parameters + backbone,
        "parameters after RoI pooling": parameters,
        "multiply-adds a RoI": sum(x.weight.numel() for x in linear),
        f"ms for {rois} RoIs": 1000 * statistics.median(seconds[1:]),
    }
