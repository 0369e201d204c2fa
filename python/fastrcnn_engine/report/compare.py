"""Several runs on one page: results, curves, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from shlex import quote
from typing import Any

from fastrcnn_engine.evaluation.mistakes import KINDS
from fastrcnn_engine.report.html import embedded_svg, page, shown
from fastrcnn_engine.report.plots import run_colour, runs_svg
from fastrcnn_engine.report.runs import RunFiles
from fastrcnn_engine.report.text import number


def render_comparison(runs: Sequence[RunFiles]) -> str:
    """The page as text, self-contained. Raises ValueError for no run or two of one name."""
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise ValueError(f"runs must be at least one, each with a name of its own; got {names}")
    body = [
        f'<header><p class="brand">fastrcnn_engine</p><h1>{_title(names)}</h1></header>',
        _results(runs),
        _classes(runs),
        _curves(runs),
        _mistakes(runs),
        _differences(runs),
    ]
    return page(_title(names), "\n".join(section for section in body if section))


def _title(names: Sequence[str]) -> str:
    return escape(names[0] if len(names) == 1 else f"{len(names)} runs")


def _table(first: str, runs: Sequence[RunFiles], rows: Mapping[str, Sequence[str]]) -> str:
    """A row for each name, a column for each run; cells are HTML already."""
    heads = "".join(
        f'<th><i class="dot" style="background:{run_colour(place)}"></i>{escape(run.name)}</th>'
        for place, run in enumerate(runs)
    )
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    )
    return (
        f'<div class="scroll"><table class="classes"><thead><tr><th>{first}</th>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _results(runs: Sequence[RunFiles]) -> str:
    def of_test(read: Callable[[Mapping[str, Any]], Any]) -> list[str]:
        return [escape(str(read(r.metrics))) if r.metrics else "not tested" for r in runs]

    def of_log(key: str, pick: Callable[[list], Any]) -> list[str]:
        values = [[row[key] for row in run.log if row.get(key) is not None] for run in runs]
        return [_number(pick(found)) if found else "" for found in values]

    rows = {
        "mAP": _best([run.metrics["mAP"] if run.metrics else None for run in runs]),
        "metric": of_test(lambda metrics: metrics["metric"]),
        "tested on": of_test(lambda m: m["settings"]["Evaluation"]["split"]),
        "images": of_test(lambda m: m["images"]),
        "iterations": of_log("iteration", max),
        "loss at the end": of_log("loss", lambda values: values[-1]),
        "images a second, in training": of_log(
            "images_per_second", lambda values: sorted(values)[len(values) // 2]
        ),
        "seconds in all": of_test(lambda metrics: f"{metrics['seconds']['total']:.0f}"),
    }
    if any(row.get("val_mAP") is not None for run in runs for row in run.log):
        rows["best mAP of the validation"] = of_log("val_mAP", max)
    commands = [f"fastrcnn-engine eval --run {quote(r.name)}" for r in runs if not r.metrics]
    hint = "".join(
        f'<p class="hint">To test it: <code>{escape(command)}</code></p>' for command in commands
    )
    return f"<section><h2>Results</h2>{_table('', runs, rows)}{hint}</section>"


def _best(values: Sequence[float | None]) -> list[str]:
    """Numbers as cells, the best in bold; nothing where there is none."""
    known = [value for value in values if value is not None]
    return [
        "" if value is None else f"<b>{number(value)}</b>" if value == max(known) else number(value)
        for value in values
    ]


def _classes(runs: Sequence[RunFiles]) -> str:
    tested = [run.metrics["classes"] if run.metrics else {} for run in runs]
    names = list(dict.fromkeys(name for classes in tested for name in classes))
    if not names:
        return ""
    rows = {name: _best([one.get(name, {}).get("AP") for one in tested]) for name in names}
    metrics = {run.metrics["metric"] for run in runs if run.metrics}
    warning = ""
    if len(metrics) > 1:
        warning = f'<p class="hint">The metrics differ: {escape(", ".join(sorted(metrics)))}.</p>'
    table = _table("class", runs, rows)
    return f"<section><h2>Average precision by class</h2>{table}{warning}</section>"


def _curves(runs: Sequence[RunFiles]) -> str:
    figures = ""
    for key, title in {
        "loss": "Loss", "val_mAP": "mAP of the validation", "learning_rate": "Learning rate",
    }.items():  # fmt: skip
        logs = {run.name: run.log for run in runs}
        if any(row.get(key) is not None for log in logs.values() for row in log):
            svg = embedded_svg(runs_svg(logs, key), f"{title} over the iterations")
            figures += f"<figure><figcaption><b>{title}</b></figcaption>{svg}</figure>"
    if not figures:
        return ""
    return f'<section><h2>Training</h2><div class="grid large">{figures}</div></section>'


def _mistakes(runs: Sequence[RunFiles]) -> str:
    told = [run.metrics["mistakes"] if run.metrics else None for run in runs]
    if not any(told):
        return ""

    def sums(read: Callable[[Mapping[str, Any]], Sequence[int]]) -> list[str]:
        return [str(sum(read(one))) if one else "" for one in told]

    rows = {
        kind: sums(lambda one, kind=kind: [c[kind] for c in one["false_positives"].values()])
        for kind in KINDS
    }
    rows["missed"] = sums(lambda one: list(one["missed"].values()))
    rows["at a score of"] = [f"{one['score']:g}" if one else "" for one in told]
    return f"<section><h2>Mistakes</h2>{_table('', runs, rows)}</section>"


def _differences(runs: Sequence[RunFiles]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = {}
    for name in names:
        values = [escape(shown(r.settings.get(name))) if r.settings else "" for r in runs]
        if name != "output" and len({value for value in values if value}) > 1:
            rows[name] = values
    if not rows:
        return ""
    return f"<section><h2>Settings that differ</h2>{_table('', runs, rows)}</section>"
