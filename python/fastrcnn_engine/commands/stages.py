"""The stages of a run: proposals of data sets, detection over a set, evaluation and its files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastrcnn_engine.commands.shards import WHOLE, shard_file, shard_files, shard_of
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.progress import counted
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    compute_proposals,
    proposal_recall,
)
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.evaluation.coco import COCOResult, coco_results, evaluate_coco
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES, SCORE_THRESHOLDS, detect_image
from fastrcnn_engine.evaluation.mistakes import Mistakes, find_mistakes
from fastrcnn_engine.evaluation.paper_protocol import detect_set
from fastrcnn_engine.evaluation.pooled import where_pooled
from fastrcnn_engine.evaluation.voc import VOCResult, evaluate_voc, write_voc_results
from fastrcnn_engine.files import whole_file, write_json
from fastrcnn_engine.models import FastRCNN, described
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.options import Metric
from fastrcnn_engine.report.cuts import cut_missed, cut_wrong
from fastrcnn_engine.report.draw import detection_marks, draw_marks, picture_grid
from fastrcnn_engine.report.environment import versions
from fastrcnn_engine.report.gallery import Drawn, drawn_at, make_gallery
from fastrcnn_engine.report.html import Report, write_report
from fastrcnn_engine.report.pooled import Looked, look, to_look_into
from fastrcnn_engine.training.distributed import Processes

BOX_FORMAT = "x1, y1, x2, y2 in pixels of the image, 0-based, both ends inclusive"
RECALL_THRESHOLDS = (0.5, 0.7)


@dataclass
class Run:
    """What is known about a run besides its results; everything lands in its report.

    seconds fills up as the stages go by (see timed).
    """

    title: str
    out: Path
    command: str
    seed: int | None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the wall-clock time of the block to `seconds[stage]`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def search_datasets(
    datasets: Sequence[Dataset],
    path: Path,
    search: Search,
    *,
    workers: int | None = None,
    shard: str = WHOLE,
    errors: list[str] | None = None,
) -> ProposalStore:
    """Proposals of all images of the data sets, kept in `path`; those in the file already stay.

    shard: a part of the images, which has a file of its own beside `path`. The whole takes over
        what is in the files of parts and searches the rest.
    errors: images that cannot be read are told there and have no proposals; None: one stops it.
    """
    items = {r.image_id: r.image_path for dataset in datasets for r in dataset.records}
    own = shard_of(list(items.items()), shard)
    parts = shard_files(path) if shard == WHOLE else []
    title = f"proposals, {', '.join(dataset.split for dataset in datasets)}"
    return compute_proposals(
        own, shard_file(path, shard), search,
        workers=workers, title=title, parts=parts, errors=errors,
    )  # fmt: skip


def detect_dataset(
    model: FastRCNN,
    dataset: Dataset,
    store: ProposalStore,
    detection: Mapping[str, Any],
    processes: Processes,
) -> dict[str, Detections] | None:
    """Detections of every image, by image id, under a progress bar.

    Several processes share the images; process 0 has all detections, the others have None. Which
    they are does not depend on how many processes there are.

    detection: "protocol" and the keyword arguments of what it stands for, "today" of detect_image,
        "paper" of detect_set.
    """
    options = dict(detection)
    protocol = options.pop("protocol")
    count = len(dataset.records)
    with counted(
        processes.share(dataset.records), "detection", -(-count // processes.count),
        shown=processes.rank == 0,
    ) as own:  # fmt: skip
        images = ((one.image_id, load_image(one.image_path), store[one.image_id]) for one in own)
        if protocol == "paper":
            found = detect_set(model, images, count, **options, gathered=processes.gathered)
        else:
            found = {
                image_id: detect_image(model, image, proposals, **options)
                for image_id, image, proposals in images
            }
    parts = processes.at_first(found)
    if parts is None:
        return None
    everything = {image_id: one for part in parts for image_id, one in part.items()}
    return {record.image_id: everything[record.image_id] for record in dataset.records}


def evaluate_and_report(
    run: Run,
    model: FastRCNN,
    dataset: Dataset,
    store: ProposalStore,
    found: Mapping[str, Detections],
    *,
    detection: Mapping[str, Any],
    metric: Metric = "area",
    iou_threshold: float = 0.5,
    log: Sequence[Mapping[str, Any]] = (),
) -> tuple[VOCResult, COCOResult | None]:
    """Evaluates and writes report.html, metrics.json, detections.json and detections.jpg.

    Data from a COCO file gets coco_results.json too, in COCO's own format, other data a folder
    voc_results in VOC's.

    found: as detect_dataset made them by `detection`.
    metric: the headline, "area" or "11point" of VOC or "coco". Counts, curves and pictures are
        those of VOC at `iou_threshold`, whichever it is.
    log: the rows of a log.jsonl, for the loss curves. Only detections of some confidence are drawn.
    """
    if "score_threshold" in detection and detection["score_threshold"] is None:
        used = SCORE_THRESHOLDS[model.classifier]
        detection = {**detection, "score_threshold": used if np.isfinite(used) else None}
    with run.timed("evaluation and pictures"):
        result = evaluate_voc(
            dataset.records, dataset.classes, found, iou_threshold=iou_threshold,
            metric="area" if metric == "coco" else metric,
        )  # fmt: skip
        coco = evaluate_coco(dataset, found) if metric == "coco" else None
        recall = proposal_recall(dataset.records, store, RECALL_THRESHOLDS)
        drawn = drawn_at(
            dataset.records, dataset.classes, found,
            score=CONFIDENT_SCORES[model.classifier], iou_threshold=iou_threshold,
        )  # fmt: skip
        gallery = make_gallery(dataset.records, dataset.classes, drawn)
        mistakes = find_mistakes(dataset.records, dataset.classes, drawn.detections, drawn.result)
        wrong = cut_wrong(dataset.records, dataset.classes, drawn, mistakes)
        missed = cut_missed(dataset.records, dataset.classes, drawn, mistakes)
        _write_sheet(run.out / "detections.jpg", dataset, drawn)
    with run.timed("looking into RoI pooling"):
        looked = look_into_pooling(model, dataset, store, drawn, mistakes)
    run.settings["Proposals"] = {
        **(store.settings or {"file": str(store.path)}),
        "boxes per image": round(recall["mean_boxes"], 1),
    }
    run.settings["Detection"] = {
        **detection,
        "classifier": model.classifier,
        "box_regression": detection["box_regression"] and model.box_regression,
        "short_side": model.preprocessing.short_side,
        "max_side": model.preprocessing.max_side,
    }
    run.settings["Evaluation"] = {
        "data": str(dataset.root),
        "split": dataset.split,
        "metric": metric,
        "iou_threshold": iou_threshold,
    }
    used = versions()
    write_json(
        run.out / "metrics.json",
        {
            **_metrics(result, coco),
            "mistakes": {"score": drawn.score, **mistakes.to_dict()},
            "proposals": recall,
            "seconds": {**run.seconds, "total": sum(run.seconds.values())},
            "seed": run.seed,
            "settings": run.settings,
            "command": run.command,
            "versions": used,
        },
    )
    write_json(run.out / "detections.json", detections_as_json(found, dataset.classes))
    if dataset.coco is not None:
        write_json(run.out / "coco_results.json", coco_results(dataset, found), indent=None)
    else:
        write_voc_results(run.out / "voc_results", dataset, found)
    write_report(
        run.out / "report.html",
        Report(
            title=run.title,
            result=result,
            coco=coco,
            drawn=drawn,
            gallery=gallery,
            mistakes=mistakes,
            wrong=wrong,
            missed=missed,
            looked=looked,
            facts={
                "data": f"{dataset.root.name}, {dataset.split}",
                "network": described(model),
                "seed": run.seed,
            },
            seconds=run.seconds,
            log=log,
            settings=run.settings,
            proposal_recall=recall["recall"],
            command=run.command,
            versions=used,
            notes=dataset.problems,
        ),
    )
    return result, coco


def _write_sheet(path: Path, dataset: Dataset, drawn: Drawn) -> None:
    """A picture of some images with all classes in their colours, for a README or a slide."""
    sheet = [record for record in dataset.records if len(record.boxes)][:9]
    if sheet:
        pictures = [
            draw_detections(r.image_path, drawn.detections[r.image_id], dataset) for r in sheet
        ]
        with whole_file(path) as file:
            Image.fromarray(picture_grid(pictures)).save(file, format="JPEG", quality=90)


def look_into_pooling(
    model: FastRCNN, dataset: Dataset, store: ProposalStore, drawn: Drawn, mistakes: Mistakes
) -> list[Looked]:
    """What RoI pooling took from the photos for a few detections, see report.pooled.to_look_into.

    Each of their images goes through the backbone once more.
    """
    chosen = to_look_into(dataset.records, drawn, mistakes)
    paths = {record.image_id: record.image_path for record in dataset.records}
    looked: dict[tuple[str, int], Looked] = {}
    for image_id in dict.fromkeys(image_id for image_id, _, _ in chosen):
        image = load_image(paths[image_id])
        own = [(row, verdict) for one, row, verdict in chosen if one == image_id]
        rois = store[image_id][drawn.detections[image_id].rows[[row for row, _ in own]]]
        for (row, verdict), roi, pooled in zip(
            own, rois.tolist(), where_pooled(model, image, rois), strict=True
        ):
            looked[image_id, row] = look(
                image, image_id, row, verdict, drawn, dataset.classes, roi, pooled
            )
    return [looked[image_id, row] for image_id, row, _ in chosen]


def _metrics(result: VOCResult, coco: COCOResult | None) -> dict[str, Any]:
    """What metrics.json says of the detections; mAP and AP of a class are those of the metric."""
    metrics = result.to_dict()
    if coco is not None:
        metrics |= {"metric": "coco", "mAP": coco.numbers["AP"], "coco": coco.to_dict()}
        for name, one in metrics["classes"].items():
            one["AP"] = coco.per_class[name]["AP"]
    return metrics


def draw_detections(path: Path, found: Any, dataset: Dataset) -> np.ndarray:
    """The detections of one image in the colours of their classes, 480 pixels wide."""
    return draw_marks(load_image(path), detection_marks(found, dataset.classes), width=480)


def detection_rows(one: Detections, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The detections of one image as plain values; scores keep full precision."""
    return [
        {"class": classes[label - 1], "score": score, "box": box}
        for box, score, label in zip(
            one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True
        )
    ]


def detections_as_json(found: Mapping[str, Detections], classes: Sequence[str]) -> dict[str, Any]:
    """Detections by image id as plain values."""
    images = {image_id: detection_rows(one, classes) for image_id, one in found.items()}
    return {"classes": list(classes), "box_format": BOX_FORMAT, "images": images}
