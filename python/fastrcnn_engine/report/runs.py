"""What the folder of a run holds, read and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrcnn_engine.evaluation.mistakes import KINDS
from fastrcnn_engine.files import read_json

# Of metrics.json, what a comparison of runs needs, and whether it is there.
OF_A_TEST: dict[str, Callable[[Any], bool]] = {
    "mAP": lambda mean: mean is None or _are_numbers([mean]),
    "metric": lambda metric: isinstance(metric, str),
    "images": lambda images: _are_numbers([images]),
    "seconds": lambda seconds: _are_numbers([seconds["total"]]),
    "settings": lambda settings: isinstance(settings["Evaluation"]["split"], str),
    "classes": lambda classes: _are_numbers(
        one["AP"] for one in classes.values() if one["AP"] is not None
    ),
    "mistakes": lambda mistakes: _are_numbers(
        [mistakes["score"], *mistakes["missed"].values()]
        + [kinds[kind] for kinds in mistakes["false_positives"].values() for kind in KINDS]
    ),
}


@dataclass(frozen=True)
class RunFiles:
    """What the folder of a run holds; a run that has not been tested has no metrics.

    metrics: of metrics.json. log: the rows of log.jsonl. settings: of config.json, flat: name ->
    value.
    """

    name: str
    metrics: Mapping[str, Any] | None
    log: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]


def run_files(folder: Path) -> RunFiles:
    """What a folder of a run, or of a test, holds.

    Raises FileNotFoundError where it is none, and ValueError for a file that cannot be read.
    """
    tests = sorted(folder.glob("eval-*/metrics.json"), key=lambda path: path.stat().st_mtime)
    metrics = next((p for p in (folder / "metrics.json", *tests[::-1]) if p.is_file()), None)
    log, config = folder / "log.jsonl", folder / "config.json"
    if metrics is None and not log.is_file():
        raise FileNotFoundError(f"{folder}: no run here; looked for metrics.json and log.jsonl")
    settings: dict[str, Any] = {}
    if config.is_file():
        content = read_json(config)
        for name in ("training", "detection"):
            part = content.get(name) or {}
            if not isinstance(part, dict):
                raise ValueError(f"{config}: {name} must be a section, got {part!r:.60}")
            settings |= part
    tested = None if metrics is None else read_json(metrics)
    missing = [name for name in OF_A_TEST if tested is not None and not _tells(tested, name)]
    if missing:
        raise ValueError(
            f"{metrics}: not of a test by this program; it lacks {', '.join(missing)}, or they are "
            "of another kind"
        )
    return RunFiles(str(folder), tested, read_log(log), settings)


def _tells(tested: Mapping[str, Any], name: str) -> bool:
    try:
        return OF_A_TEST[name](tested[name])
    except (KeyError, TypeError, AttributeError):
        return False


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training log, one JSON object a line; none if there is no such file.

    Raises ValueError for another line, naming it.
    """
    if not path.is_file():
        return []
    rows = []
    # What follows the last line's end was cut off when the run was killed.
    whole = path.read_bytes().rpartition(b"\n")[0]
    for number, line in enumerate(whole.splitlines(), start=1):
        if not line:
            continue
        row, good = None, False
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            row = json.loads(line)
            # All but the ids of bad images are numbers, or null.
            told = [v for name, v in row.items() if name != "bad_images" and v is not None]
            good = _are_numbers([row["iteration"], *told])
        if not good:
            raise ValueError(
                f"{path}, line {number}: not a line of a training log; take it out, or move the "
                "file away"
            )
        rows.append(row)
    return rows
