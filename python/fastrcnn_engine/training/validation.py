"""Mean AP on a second split while the training goes on."""

from __future__ import annotations

from pathlib import Path

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.training.distributed import Processes


class Validation:
    """VOC's AP at IoU 0.5 (area), mean over the classes, of the detections with the defaults.

    Raises ValueError when the split is not there or an image of it has no proposals.
    """

    def __init__(
        self,
        data: Path,
        split: str,
        classes: tuple[str, ...],
        store: ProposalStore,
        processes: Processes,
    ):
        self.dataset = load_dataset(data, split, classes)
        self.store, self.processes = store, processes
        for record in self.dataset.records:
            store[record.image_id]
        if not any((~r.difficult & ~r.crowd).any() for r in self.dataset.records):
            raise ValueError(
                f"val_split is {split!r}: none of its {len(self.dataset.records)} images has an "
                "object that a test counts"
            )

    def mean_ap(self, model: FastRCNN) -> float:
        """Mean AP of a network in training, which is in training again afterwards.

        Several processes share the images.

        Raises:
            OSError, ValueError: an image that cannot be read, in all processes.
        """
        model.eval()
        found, failure = {}, None
        for record in self.processes.share(self.dataset.records):
            if failure is not None:
                continue  # the processes wait for each other on the way: all go to the end
            try:
                pixels = load_image(record.image_path)
                found[record.image_id] = detect_image(model, pixels, self.store[record.image_id])
            except (OSError, ValueError) as error:
                failure = error
        model.train()
        everything = {}
        for part, told in self.processes.gathered((found, failure and str(failure))):
            if told is not None:
                raise failure or OSError(f"another process could not test: {told}")
            everything |= part
        value = evaluate_voc(self.dataset.records, self.dataset.classes, everything).mean_ap
        assert value is not None  # there are objects
        return value
