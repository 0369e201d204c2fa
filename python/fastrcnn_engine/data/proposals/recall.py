"""How well proposals cover the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrcnn_engine.data.proposals.store import ProposalStore
from fastrcnn_engine.data.records import ImageRecord


def proposal_recall(
    records: Sequence[ImageRecord],
    store: Mapping[str, np.ndarray] | ProposalStore,
    thresholds: Sequence[float] = (0.5, 0.7),
) -> dict[str, Any]:
    """The share of objects that some proposal overlaps with IoU >= threshold: a bound on any
    detector.

    Difficult objects are not counted, as in the evaluation. Returns `images`, `objects`,
    `mean_boxes` (per image), `recall` {threshold: share} and `recall_by_label` {label: {threshold:
    share}}; a share of no objects is None.

    Raises ValueError for an image without an entry in the store.
    """
    from fastrcnn_engine.ops import box_iou

    best: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    count = 0
    for record in records:
        try:
            proposals = np.asarray(store[record.image_id], np.float32)
        except KeyError:
            raise ValueError(f"no proposals for image {record.image_id!r}") from None
        count += len(proposals)
        objects = record.boxes[~record.difficult]
        iou = box_iou(objects, proposals, inclusive=True)  # (G, P)
        best.append(np.max(iou, axis=1, initial=0))
        labels.append(record.labels[~record.difficult])
    all_best = np.concatenate(best) if best else np.zeros(0)
    all_labels = np.concatenate(labels) if labels else np.zeros(0, np.int64)

    def shares(values: np.ndarray) -> dict[float, float | None]:
        # IoU is float32, so the thresholds are too: NumPy's own 0.7 is above an IoU of 7/10.
        return {
            t: float(np.mean(values >= np.float32(t))) if len(values) else None for t in thresholds
        }

    return {
        "images": len(records),
        "objects": len(all_best),
        "mean_boxes": count / len(records) if records else 0.0,
        "recall": shares(all_best),
        "recall_by_label": {
            int(k): shares(all_best[all_labels == k]) for k in np.unique(all_labels)
        },
    }
