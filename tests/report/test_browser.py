"""The pages in a real browser, where there is one: nothing is wider than a phone's screen.

Everything else about them is checked without one (test_html.py, test_compare.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape

import numpy as np
import pytest

from fastrcnn_engine.evaluation.mistakes import KINDS
from fastrcnn_engine.report.compare import render_comparison
from fastrcnn_engine.report.html import render_report

from .test_compare import ONE, TWO, UNTESTED
from .test_html import cut, report, scene  # noqa: F401

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
# The page in a frame, as a browser's window is never narrower than 500 pixels; the title tells.
FRAME = """<!doctype html><title></title>
<iframe id="frame" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  const bad = [...inside.images].filter(image => !image.complete || !image.naturalWidth).length;
  const shown = () => [...inside.querySelectorAll(".filter figure")].filter(
    figure => figure.getClientRects().length).map(figure => figure.className).join(" ");
  const before = shown();
  inside.querySelector(".filter label[for=kind-3]")?.click();
  const chosen = `${{before}}; ${{shown()}}`;
  const wide = `wide ${{root.scrollWidth}} of ${{root.clientWidth}}`;
  document.title = `${{chosen}}; ${{wide}}, broken ${{bad}}`;
}};
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_the_page_fits_the_screen_and_all_its_pictures_show(report, tmp_path, name, width):  # noqa: F811
    runs = [ONE, TWO, UNTESTED]
    # The kinds of false positives can be chosen without a script of the page's own.
    kinds = np.array([[0, 2, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    cuts = [cut(f"cat 0.{9 - place}", KINDS[kind]) for place, kind in enumerate((2, 1, 3, 1))]
    cuts[0] = replace(cuts[0], image_id="a/long/name" * 9, name="long" * 20)
    report = replace(report, wrong=cuts, mistakes=replace(report.mistakes, kinds=kinds))
    text = render_report(report) if name == "report" else render_comparison(runs)
    page = tmp_path / "page.html"
    page.write_text(FRAME.format(width=width, page=escape(text)), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900",
         "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<title>(.*); wide (\d+) of (\d+), broken (\d+)</title>", done.stdout)
    assert found, done.stderr
    chosen, *numbers = found.groups()
    wide, screen, broken = map(int, numbers)
    assert wide <= screen <= width and broken == 0
    everything = "kind-3 kind-2 kind-4 kind-2; kind-3" if name == "report" else "; "
    assert chosen == everything
