"""How the proposals of an image are made: the methods, their settings, and how many to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.proposals.boxes import at_least, at_most, distinct
from fastrcnn_engine.data.proposals.dense_boxes import dense_boxes
from fastrcnn_engine.data.proposals.edge_boxes import edge_boxes
from fastrcnn_engine.data.proposals.selective_search import MODES, selective_search
from fastrcnn_engine.files import crc32_of

METHODS = ("selective-search", "edge-boxes", "grid")


@dataclass(frozen=True)
class Search:
    """A method with its settings. Equal ones give the same image of the same id the same boxes.

    Args:
        method: "selective-search" (`selective_search`), "edge-boxes" (`edge_boxes`) or "grid"
            (`dense_boxes`).
        mode: of selective search.
        short_side: larger images are shrunk to this short side for the search; None leaves them.
            A grid is not searched for.
        min_size: boxes narrower or lower than this many pixels of the image are left out.
        edge_model: of edge boxes; None takes plain gradients.
        max_boxes: the most of an image. Edge boxes keep the best, of the others so many are drawn
            (see `at_most`). None keeps all.
        seed: of that draw.

    Raises ValueError for settings that are out of range and an edge_model of another method.
    """

    method: str = "selective-search"
    mode: str = "fine"
    short_side: int | None = 200
    min_size: int = 16
    edge_model: Path | None = None
    max_boxes: int | None = None
    seed: int = 3

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("mode", MODES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name in ("short_side", "min_size", "max_boxes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.edge_model is not None and self.method != "edge-boxes":
            raise ValueError(
                f"edge_model is {self.edge_model}, but the method is {self.method}; only edge-boxes"
                " takes one"
            )

    def boxes(self, image: np.ndarray, image_id: str) -> np.ndarray:
        """Proposals of an image (H, W, 3) uint8 RGB: (P, 4) float32, whole pixels, none twice.

        Raises what the function of the method raises.
        """
        if self.method == "selective-search":
            found = selective_search(
                image, mode=self.mode, short_side=self.short_side, min_size=self.min_size
            )
        elif self.method == "edge-boxes":
            found = edge_boxes(
                image,
                model=self.edge_model,
                short_side=self.short_side,
                min_size=self.min_size,
            )
        else:
            height, width = image.shape[:2]
            grid = dense_boxes(width, height)
            found = distinct(grid[at_least(grid, self.min_size)])
        return at_most(
            found, self.max_boxes, image_id, seed=self.seed, ranked=self.method == "edge-boxes"
        )

    def to_dict(self) -> dict[str, Any]:
        """What a proposal file says of itself: plain values, those that decide its boxes.

        The file of an edge model counts, by a checksum. Raises FileNotFoundError if it is missing.
        """
        settings: dict[str, Any] = {"method": self.method.replace("-", " ")}
        if self.method == "selective-search":
            settings["mode"] = self.mode
        if self.method != "grid":
            settings["short_side"] = self.short_side
        settings["min_size"] = self.min_size
        if self.method == "edge-boxes":
            settings["ranked"] = True
            settings["edge_model"] = None if self.edge_model is None else str(self.edge_model)
        if self.edge_model is not None:
            if not self.edge_model.is_file():
                raise FileNotFoundError(f"{self.edge_model}: no such model of an edge detector")
            settings["edge_model_crc32"] = crc32_of(self.edge_model)
        if self.max_boxes is not None:
            settings["max_boxes"] = self.max_boxes
            if self.method != "edge-boxes":
                settings["seed"] = self.seed
        return settings

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> Search | None:
        """The search that a proposal file says made it; None if it says so of none of METHODS.

        Raises ValueError for settings out of range or of another kind.
        """
        method = str((settings or {}).get("method")).replace(" ", "-")
        if settings is None or method not in METHODS:
            return None
        names = ("mode", "short_side", "min_size", "max_boxes", "seed")
        known = {name: settings[name] for name in names if name in settings}
        try:
            if settings.get("edge_model") is not None:
                known["edge_model"] = Path(settings["edge_model"])
            return cls(method=method, **known)
        except TypeError:
            raise ValueError(
                f"proposals are said to be made with {dict(settings)}, a value of which is of "
                "another kind"
            ) from None


def same_boxes(settings: Mapping[str, Any] | None, others: Mapping[str, Any]) -> bool:
    """Whether two files say of themselves that the same search made them.

    Where a model lies does not count, as its checksum does.
    """
    if settings is None:
        return False
    one, other = ({k: v for k, v in s.items() if k != "edge_model"} for s in (settings, others))
    return one == other
