"""What the site adds to pages that GitHub shows as they are: formulas, and files outside docs/."""

from __future__ import annotations

import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages of the site that lie beside docs/. Other files that a page links to are copied as they are.
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORT_FORMULA = re.compile(r"\$`([^`\n]+)`\$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        source = Path(page.abs_src_path)
        for _, target, _ in LINK.findall(source.read_text(encoding="utf-8")):
            path = (source.parent / target).resolve()
            place = in_site(path)
            if path.is_file() and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = Path(page.file.abs_src_path).parent

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        path = (folder / target).resolve()
        # A link that leads nowhere stays as it is, and the strict build names it.
        return f"[{text}]({in_site(path) if path.exists() else target}{anchor})"

    markdown = LINK.sub(link, markdown)
    markdown = FORMULA.sub(lambda found: formula(found[1], "div"), markdown)
    return SHORT_FORMULA.sub(lambda found: formula(found[1], "span"), markdown)


def in_site(path: Path) -> str:
    """Where a file of the repository lies in the site, whose pages all lie at its root."""
    place = path.relative_to(ROOT).as_posix()
    if place in PAGES:
        return PAGES[place]
    return place.removeprefix("docs/") if place.startswith("docs/") else f"source/{place}"


def formula(latex: str, element: str) -> str:
    """MathML, which browsers show without a script."""
    display = "block" if element == "div" else "inline"
    # Markdown would take a star or an underscore in it for its own.
    mathml = convert(latex.strip(), display=display).replace("*", "&#42;").replace("_", "&#95;")
    return f'<{element} class="formula">{mathml}</{element}>'
