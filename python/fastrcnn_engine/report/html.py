"""The report of a run: one HTML file that holds its pictures, needs no network and no script."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastrcnn_engine.evaluation.coco import NUMBERS, COCOResult
from fastrcnn_engine.evaluation.mistakes import KINDS, Mistakes
from fastrcnn_engine.evaluation.voc import ClassResult, VOCResult
from fastrcnn_engine.files import write_whole
from fastrcnn_engine.report.cuts import HIGHEST, OF_EACH_KIND, Cut
from fastrcnn_engine.report.gallery import Drawn, Gallery, Shown
from fastrcnn_engine.report.plots import curves_svg, hex_colour, precision_recall_svg
from fastrcnn_engine.report.pooled import RIGHT_ONES, WRONG_ONES, Looked
from fastrcnn_engine.report.style import CSS
from fastrcnn_engine.report.text import number

_METRIC_NAMES = {"area": "area under the curve", "11point": "VOC07, 11 points"}
CUT_QUALITY = 72  # of JPEG, for the many small pictures
MOST_CONFUSED = 25  # classes; the table of more is no longer read by anybody
_AP_NAMES = {"area": "AP, area", "11point": "AP, 11 points"}


@dataclass(frozen=True)
class Report:
    """Everything a report shows. Empty fields leave their section out.

    drawn: the detections that pictures, precision, recall and mistakes are about.
    coco: if COCO's is the metric, its numbers; counts, curves and pictures are those of `result`.
    mistakes: of the drawn detections. wrong, missed: some of them cut from the photos, see cuts.py.
    looked: what RoI pooling took from the photo for some of the detections.
    facts: small print under the title, name -> value, such as the data set and the network.
    seconds: stage -> wall-clock seconds, in the order of the run.
    log: rows of the training log with iteration, loss, loss_cls, loss_box.
    settings: group -> (name -> value).
    proposal_recall: IoU threshold -> share of the objects that some proposal covers.
    command: the line that repeats the run. versions: name -> version. notes: warnings.
    """

    title: str
    result: VOCResult
    drawn: Drawn
    gallery: Gallery
    coco: COCOResult | None = None
    mistakes: Mistakes | None = None
    wrong: Sequence[Cut] = ()
    missed: Sequence[Cut] = ()
    looked: Sequence[Looked] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    proposal_recall: Mapping[float, float] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Writes the report to `path`, as `write_whole` does, and returns the path."""
    path = Path(path)
    write_whole(path, render_report(report))
    return path


def render_report(report: Report) -> str:
    """The whole page as text."""
    sections = [
        _headline(report),
        _notes(report.notes),
        _class_table(report.result, report.drawn, report.coco),
        _coco_numbers(report.coco),
        _precision_recall(report.result, report.drawn.score),
        _mistakes(report.mistakes, report.drawn),
        _wrong(report.wrong, report.mistakes),
        _missed(report.missed, report.mistakes),
        _training(report.log),
        _pictures(report.gallery, report.drawn.score),
        _looked(report.looked),
        _timing(report.seconds),
        _settings(report.settings),
        _reproduce(report.command, report.versions),
    ]
    return page(escape(report.title), "\n".join(section for section in sections if section))


def page(title: str, body: str) -> str:
    """A whole page of a title and sections, both HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _headline(report: Report) -> str:
    result = report.result
    facts = "".join(
        f"<li>{escape(name)} <b>{escape(shown(value))}</b></li>"
        for name, value in report.facts.items()
    )
    objects = sum(c.npos for c in result.per_class)
    counted = report.drawn.result.per_class
    right, wrong = sum(c.tp for c in counted), sum(c.fp for c in counted)
    cards = [
        (f"{result.images}", "test images"),
        (f"{objects}", "objects to find"),
        (_percent(_ratio(right, objects)), f"recall at score {report.drawn.score:g}"),
        (_percent(_ratio(right, right + wrong)), f"precision at score {report.drawn.score:g}"),
    ]
    for threshold, recall in report.proposal_recall.items():
        cards.append((_percent(recall), f"of the objects proposed, IoU {threshold:g}"))
    if report.seconds:
        cards.append((_duration(sum(report.seconds.values())), "in all"))
    if report.coco is None:
        score = result.mean_ap
        meaning = f"mAP at IoU {result.iou_threshold:g}<br>{_METRIC_NAMES[result.metric]}"
    else:
        score, meaning = report.coco.numbers["AP"], "AP at IoU 0.50 to 0.95<br>COCO"
    small = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for v, k in cards)
    return f"""<header>
<p class="brand">fastrcnn_engine</p>
<h1>{escape(report.title)}</h1>
<ul class="facts">{facts}</ul>
<div class="headline">
<div class="score"><b>{number(score)}</b>
<span>{meaning}</span></div>
<div class="cards">{small}</div>
</div>
</header>"""


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    shown = "".join(f"<li>{escape(note)}</li>" for note in notes[:20])
    if len(notes) > 20:
        shown += f"<li>and {len(notes) - 20} more</li>"
    return (
        f'<section class="notes"><details open><summary>Notes ({len(notes)})</summary>'
        f"<ul>{shown}</ul></details></section>"
    )


def _class_table(result: VOCResult, drawn: Drawn, coco: COCOResult | None) -> str:
    columns = _averages(result, coco)
    per_class = zip(*(values for _, values, _ in columns), strict=True)
    rows = "".join(
        _class_row(label, one, at, averages)
        for label, (one, at, averages) in enumerate(
            zip(result.per_class, drawn.result.per_class, per_class, strict=True), start=1
        )
    )
    mean, *others = (number(mean) for _, _, mean in columns)
    foot = _cells(
        *others,
        sum(c.npos for c in result.per_class),
        sum(c.ndet for c in result.per_class),
        "",
        "",
    )
    names = "".join(f"<th>{name}</th>" for name, _, _ in columns)
    return f"""<section>
<h2>Classes</h2>
<div class="scroll"><table class="classes">
<thead><tr><th>class</th><th class="bar"></th>{names}
<th>objects</th><th>detections</th><th>precision</th><th>recall</th></tr></thead>
<tbody>{rows}</tbody>
<tfoot><tr><td>mean</td><td class="bar"></td><td><b>{mean}</b></td>{foot}</tr>
</tfoot></table></div>
<p class="hint">Detections counts all of them, however low their score. Precision and recall are
those at a score of {drawn.score:g} and above, the ones drawn in the pictures. “n/a” as AP and
recall: no test image holds an object of the class, so it does not enter the mean; as precision:
there is no such detection. Difficult objects do not count.</p>
</section>"""


def _averages(
    result: VOCResult, coco: COCOResult | None
) -> list[tuple[str, list[float | None], float | None]]:
    """The columns of average precision: heading, one value a class, mean. The headline first."""
    if coco is not None:
        return [
            (f"{key}, COCO", [one[key] for one in coco.per_class.values()], coco.numbers[key])
            for key in ("AP", "AP50", "AP75")
        ]
    metrics = ("area", "11point") if result.metric == "area" else ("11point", "area")
    return [
        (_AP_NAMES[one], [c.ap(one) for c in result.per_class], result.mean_ap_of(one))
        for one in metrics
    ]


def _class_row(
    label: int, one: ClassResult, at: ClassResult, averages: Sequence[float | None]
) -> str:
    ap, *others = averages
    bar = f'<i style="width:{100 * (ap or 0):.1f}%;background:{hex_colour(label)}"></i>'
    cells = _cells(
        *map(number, others),
        one.npos,
        one.ndet,
        number(_ratio(at.tp, at.tp + at.fp)),
        number(_ratio(at.tp, at.npos)),
    )
    return (
        f'<tr><td><i class="dot" style="background:{hex_colour(label)}"></i>{escape(one.name)}</td>'
        f'<td class="bar">{bar}</td><td><b>{number(ap)}</b></td>{cells}</tr>'
    )


def _coco_numbers(coco: COCOResult | None) -> str:
    if coco is None:
        return ""
    rows = {f"{name}: {meaning}": number(coco.numbers[name]) for name, meaning in NUMBERS.items()}
    return f'<section><h2>COCO</h2><div class="settings">{_pairs(rows)}</div></section>'


def _precision_recall(result: VOCResult, score: float) -> str:
    figures = "".join(
        f"<figure><figcaption><b>{escape(one.name)}</b>"
        f"<span>{_AP_NAMES[result.metric]} {number(one.ap(result.metric))}</span></figcaption>"
        f"{embedded_svg(precision_recall_svg(one, label, score=score), f'curve, {one.name}')}"
        f"</figure>"
        for label, one in enumerate(result.per_class, start=1)
    )
    return f"""<section>
<h2>Precision and recall</h2>
<div class="grid small">{figures}</div>
<p class="hint">At IoU {result.iou_threshold:g}. The dot is the score {score:g}. The shaded area is
the AP by area.</p>
</section>"""


def _mistakes(mistakes: Mistakes | None, drawn: Drawn) -> str:
    if mistakes is None:
        return ""
    kinds = "".join(
        f'<tr><td><i class="dot" style="background:{hex_colour(label)}"></i>{escape(name)}</td>'
        f"{_cells(one.tp, *counts, missed)}</tr>"
        for label, (name, one, counts, missed) in enumerate(
            zip(
                mistakes.classes, drawn.result.per_class, mistakes.kinds.tolist(),
                mistakes.missed.tolist(), strict=True,
            ),
            start=1,
        )
    )  # fmt: skip
    heads = "".join(f"<th>{kind}</th>" for kind in ("right", *KINDS, "missed"))
    confusion = ""
    if len(mistakes.classes) <= MOST_CONFUSED:
        names = [escape(name) for name in mistakes.classes]
        columns = "".join(f"<th>{name}</th>" for name in (*names, "missed"))
        rows = "".join(
            f"<tr><td>{name}</td>{_shaded(row)}</tr>"
            for name, row in zip((*names, "nothing"), mistakes.confusion.tolist(), strict=True)
        )
        confusion = f"""<h3>What was taken for what</h3>
<div class="scroll"><table class="classes"><thead><tr><th>what it is</th>{columns}</tr></thead>
<tbody>{rows}</tbody></table></div>
<p class="hint">Rows: objects, and “nothing” under detections that lie on none or on one that is
found already. Columns: what they were called.</p>"""
    return f"""<section>
<h2>Mistakes</h2>
<div class="scroll"><table class="classes">
<thead><tr><th>class</th>{heads}</tr></thead><tbody>{kinds}</tbody></table></div>
<p class="hint">Detections with a score of at least {drawn.score:g}. A duplicate lies on an object
that is found already; localisation: overlaps an object of its class, but too little; other class:
overlaps one of another class; background: neither (Hoiem et al., 2012).</p>
{confusion}
</section>"""


def _wrong(cuts: Sequence[Cut], mistakes: Mistakes | None) -> str:
    if not cuts or mistakes is None:
        return ""
    totals = dict(zip(KINDS, mistakes.kinds.sum(axis=0).tolist(), strict=True))
    every = sum(totals.values())
    # Radio buttons and four lines of style choose the kind, without a script.
    choices = [("all", len(cuts), every)]
    choices += [(kind, sum(one.kind == kind for one in cuts), totals[kind]) for kind in KINDS]
    buttons = "".join(
        f'<input type="radio" name="kind" id="kind-{place}"{" checked" if place == 0 else ""}>'
        f'<label for="kind-{place}">{kind} <span>{_of(count, total)}</span></label>'
        for place, (kind, count, total) in enumerate(choices)
        if total
    )
    figures = "".join(
        _cut(one, f'<span><em class="wrong">{one.kind}</em></span>', KINDS.index(one.kind) + 1)
        for one in cuts
    )
    chosen = "All of them"
    if len(cuts) < every:
        chosen = f"The {HIGHEST} with the highest scores, and {OF_EACH_KIND} of each kind at least"
    return f"""<section>
<h2>False positives by falling score</h2>
<ul class="legend"><li><i class="wrong"></i>false positive</li>
<li><i class="truth"></i>object, found or difficult</li>
<li><i class="missed"></i>object, missed</li></ul>
<p class="hint">{chosen}. Beside each, the object that it overlaps most, of its own class where that
is what is wrong.</p>
<div class="filter">{buttons}<div class="grid cuts">{figures}</div></div>
</section>"""


def _missed(cuts: Sequence[Cut], mistakes: Mistakes | None) -> str:
    if not cuts or mistakes is None:
        return ""
    total = int(mistakes.missed.sum())
    chosen = "All of them" if len(cuts) == total else f"The {len(cuts)} largest of {total}"
    figures = "".join(_cut(one, "") for one in cuts)
    return f"""<section>
<h2>Missed objects by falling size</h2>
<ul class="legend"><li><i class="missed"></i>missed object</li>
<li><i class="wrong"></i>wrong detection</li>
<li><i class="right"></i>detection that is right, of another object</li>
<li><i class="other"></i>of a difficult one</li></ul>
<p class="hint">{chosen}. Beside each, the detection that overlaps it most, if one does.</p>
<div class="grid cuts">{figures}</div>
</section>"""


def _cut(one: Cut, verdict: str, kind: int | None = None) -> str:
    about = f"{one.name}, {one.image_id}"
    shown_with = "" if kind is None else f' class="kind-{kind}"'
    return (
        f"<figure{shown_with}>{_jpeg(one.picture, about, CUT_QUALITY)}"
        f"<figcaption><b>{escape(one.name)}</b>{verdict}"
        f"<span>{escape(one.beside or 'nothing overlaps')}</span>"
        f"<small>{escape(one.image_id)}</small></figcaption></figure>"
    )


def _of(count: int, total: int) -> str:
    return f"{count}" if count == total else f"{count} of {total}"


def _looked(looked: Sequence[Looked]) -> str:
    if not looked:
        return ""
    figures = ""
    for one in looked:
        colour = "right" if one.verdict == "right" else "wrong"
        about = f"{one.name}, {one.image_id}"
        figures += (
            f'<figure><div class="pair">{_jpeg(one.photo, about, CUT_QUALITY)}'
            f"{_jpeg(one.heat, f'{about}: bins and maxima', CUT_QUALITY)}</div>"
            f"<figcaption><b>{escape(one.name)}</b>"
            f'<span><em class="{colour}">{one.verdict}</em></span>'
            f"<span>{_pooled(one)}</span>"
            f"<small>{escape(one.image_id)}</small></figcaption></figure>"
        )
    return f"""<section>
<h2>What RoI pooling took</h2>
<ul class="legend"><li><i class="roi"></i>RoI, the proposal</li>
<li><i class="right"></i><i class="wrong"></i>what was detected from it</li>
<li><i class="bins"></i>bins</li><li>few <i class="heat"></i> many maxima in a cell</li></ul>
<p class="hint">The best right detection of each class, of {RIGHT_ONES} classes at most, and the
{WRONG_ONES} highest false positives. RoI pooling rounds a RoI to cells of the network’s map,
divides it into bins and passes on the maximum of each bin in each channel (paper, section 2.1).
The brighter a cell, the more of the maxima came from it; the fullest of each RoI is brightest.
Where bins share cells, these count for each of them. Maxima of a bin that holds one and the same
number, behind a ReLU mostly 0, are flat and left out.</p>
<div class="grid pictures pooling">{figures}</div>
</section>"""


def _pooled(one: Looked) -> str:
    x1, y1, x2, y2 = one.roi
    words = f"RoI of {x2 - x1 + 1:.0f} × {y2 - y1 + 1:.0f} pixels"
    level = f"(short side {one.pooled.short_side})"
    bins = one.pooled.bins
    if not len(bins):
        return f"{words}, outside the map {level}"
    wide = bins[:, 2].max() - bins[:, 0].min() + 1
    high = bins[:, 3].max() - bins[:, 1].min() + 1
    total = one.pooled.channels * len(bins)
    words += f" = {wide} × {high} cells {level}; {total} maxima"
    if one.pooled.flat:
        words += f", {_percent(one.pooled.flat / total)} of them flat"
    return words


def _shaded(counts: Sequence[int]) -> str:
    total = sum(counts) or 1
    return "".join(
        f'<td style="background:rgba(37,99,235,{0.45 * count / total:.2f})">{count or ""}</td>'
        for count in counts
    )


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    if not any(row.get("loss") is not None for row in log):
        return ""
    total = embedded_svg(curves_svg(log, {"loss": "total"}), "training loss")
    parts = embedded_svg(
        curves_svg(log, {"loss_cls": "classification", "loss_box": "boxes"}), "parts of the loss"
    )
    return f"""<section>
<h2>Training</h2>
<div class="grid large"><figure><figcaption><b>Loss</b></figcaption>{total}</figure>
<figure><figcaption><b>Its two parts</b></figcaption>{parts}</figure></div>
</section>"""


def _pictures(gallery: Gallery, score: float) -> str:
    def figures(shown: Sequence[Shown]) -> str:
        return "".join(
            f"<figure>{_jpeg(one.picture, one.image_id)}<figcaption><b>{escape(one.image_id)}</b>"
            f"<span>{_tally(one)}</span></figcaption></figure>"
            for one in shown
        )

    worst = ""
    if gallery.worst:
        worst = f'<h3>Worst</h3>\n<div class="grid pictures">{figures(gallery.worst)}</div>'
    return f"""<section>
<h2>Pictures</h2>
<ul class="legend"><li><i class="right"></i>right</li><li><i class="wrong"></i>wrong</li>
<li><i class="missed"></i>missed</li><li><i class="truth"></i>ground truth</li></ul>
<p class="hint">Detections with a score of at least {score:g}. Test images are ranked by the
share that is right of all boxes and objects.</p>
<h3>Best</h3>
<div class="grid pictures">{figures(gallery.best)}</div>
{worst}
</section>"""


def _tally(one: Shown) -> str:
    words = [f'<em class="right">{one.right} right</em>'] if one.right else []
    words += [f'<em class="wrong">{one.wrong} wrong</em>'] if one.wrong else []
    words += [f'<em class="missed">{one.missed} missed</em>'] if one.missed else []
    return " ".join(words) or "nothing to find, nothing found"


def _timing(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    longest = max(seconds.values()) or 1.0
    rows = "".join(
        f'<tr><td>{escape(stage)}</td><td class="bar">'
        f'<i style="width:{100 * s / longest:.1f}%"></i></td><td>{_duration(s)}</td></tr>'
        for stage, s in seconds.items()
    )
    return f'<section><h2>Time</h2><table class="time"><tbody>{rows}</tbody></table></section>'


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    if not settings:
        return ""
    groups = "".join(
        f"<div><h3>{escape(group)}</h3>{_pairs(values)}</div>" for group, values in settings.items()
    )
    return f'<section><h2>Settings</h2><div class="settings">{groups}</div></section>'


def _reproduce(command: str, versions: Mapping[str, Any]) -> str:
    if not command and not versions:
        return ""
    shown = f"<pre><code>{escape(command)}</code></pre>" if command else ""
    return f"<section><h2>How to reproduce</h2>{shown}{_pairs(versions)}</section>"


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(shown(value))}</dd></div>"
        for name, value in values.items()
    )
    return f"<dl>{rows}</dl>"


def _cells(*values: Any) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.0f}\u00a0%"


def shown(value: Any) -> str:
    """A setting as people read it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(one) for one in value)
    return str(value)


def _duration(seconds: float) -> str:
    if seconds < 100:
        text = f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    else:
        minutes, rest = divmod(round(seconds), 60)
        hours, left = divmod(minutes, 60)
        text = f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return text.replace(" ", "\u00a0")


def _jpeg(picture: np.ndarray, name: str, quality: int = 88) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality, optimize=True)
    return _embedded("image/jpeg", buffer.getvalue(), name)


def embedded_svg(text: str, name: str) -> str:
    """A picture of SVG text, as an element of the page."""
    # As an image, not as elements of the page: the ids of two plots cannot clash.
    return _embedded("image/svg+xml", text.encode(), name)


def _embedded(kind: str, content: bytes, name: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(name, quote=True)}" src="data:{kind};base64,{data}">'
