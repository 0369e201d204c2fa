"""The pages in a real browser, where there is one: nothing is wider than a phone's screen.

Everything else about them is checked without one (test_html.py, test_compare.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape

import pytest

from fastrcnn_engine.report.compare import render_comparison
from fastrcnn_engine.report.html import render_report

from .test_compare import ONE, TWO, UNTESTED
from .test_html import report, scene  # noqa: F401

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
  document.title = `wide ${{root.scrollWidth}} of ${{root.clientWidth}}, broken ${{bad}}`;
}};
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_the_page_fits_the_screen_and_all_its_pictures_show(report, tmp_path, name, width):  # noqa: F811
    runs = [ONE, TWO, UNTESTED]
    text = render_report(report) if name == "report" else render_comparison(runs)
    page = tmp_path / "page.html"
    page.write_text(FRAME.format(width=width, page=escape(text)), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900",
         "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<title>wide (\d+) of (\d+), broken (\d+)</title>", done.stdout)
    assert found, done.stderr
    wide, screen, broken = map(int, found.groups())
    assert wide <= screen <= width and broken == 0
