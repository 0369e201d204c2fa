"""The documentation keeps its word: its Python runs, its commands and links exist, its site builds.

The site needs what `pip install '.[docs]'` brings.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import fastrcnn_engine
from fastrcnn_engine import cli, models, training
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import write_proposals
from fastrcnn_engine.models.pretrained import TORCHVISION_LAYERS
from fastrcnn_engine.ops.box_codec import MAX_LOG_RATIO

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def test_signatures_of_the_operators_page() -> None:
    (listed,) = blocks("operators.md", "text")
    written = re.sub(r"\n +", " ", listed.strip()).replace("MAX_LOG_RATIO", repr(MAX_LOG_RATIO))
    expected = []
    for name in (line.partition("(")[0] for line in written.splitlines()):
        signature = inspect.signature(getattr(fastrcnn_engine, name))
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        expected.append(f"{name}{inspect.Signature(bare)}")
    assert written.splitlines() == expected
    others = {"ops", "Detections", "PaddedDetections", "PaddedIndices", "build_info"}
    others |= {"get_num_threads", "set_num_threads"}
    names = {line.partition("(")[0] for line in expected}
    assert names == {*fastrcnn_engine.__all__, "RoIPool"} - others


@every_page
def test_a_page_ends_with_its_last_line(page: str) -> None:
    assert text_of(page).endswith("\n"), "cut off?"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, each after as many empty lines as stand before it."""
    text = text_of(page)
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * (text.count("\n", 0, match.start()) + 1) + match[1] for match in found]


# ---- Python -------------------------------------------------------------------------------------


def _own_backbone(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A backbone and data of one's own, and a run of two iterations."""
    write_demo_set("pets", seed=3, train=2, test=1)
    for path in Path("pets/Annotations").iterdir():
        drawn = path.read_text()
        path.write_text(re.sub(r"<name>(cross|disc|ring)<", "<name>cat<", drawn))
        path.write_text(re.sub(r"<name>(?!cat)\w+<", "<name>dog<", path.read_text()))
    records = load_dataset(Path("pets"), "train").records
    write_proposals("pets.npz", ((r.image_id, np.float32([[9, 9, 99, 99]])) for r in records))
    short = functools.partial(training.TrainConfig, iterations=2, short_side=240)
    monkeypatch.setattr(training, "TrainConfig", short)
    return {"my_backbone": torch.nn.Conv2d(3, 512, 16, stride=16)}


def _vgg16_before_and_after(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The convolutions of VGG16; the rest of its half gigabyte is not made."""
    with torch.device("meta"):
        network = models.build_network("vgg16", ["RBC", "WBC", "Platelets"])
    network.backbone.to_empty(device="cpu")
    torch.nn.init.ones_(network.backbone.conv1_1.weight)
    weights = network.state_dict()
    pairs = [pair for pair in TORCHVISION_LAYERS.items() if pair[1].startswith("backbone.")]
    before = {f"{theirs}.weight": weights[f"{ours}.weight"] for theirs, ours in pairs}
    torch.save(before, "vgg16_convs.pth")
    monkeypatch.setattr(training, "load_network", lambda path: network)
    return {}


def _annotations(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    Path("MYDATA/Annotations").mkdir(parents=True)
    for name in "abc":
        Path(f"MYDATA/Annotations/{name}.xml").write_text("<annotation/>")
    return {}


def _photo(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    Image.new("RGB", (90, 60)).save("photo.jpg")
    return {}


# What a page supposes to be there. The others bring what they need.
SETTINGS = {
    "README.md": _own_backbone,
    "bccd.md": _vgg16_before_and_after,
    "data.md": _annotations,
    "training.md": _photo,
}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
@pytest.mark.filterwarnings("ignore")
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = SETTINGS[page](monkeypatch) if page in SETTINGS else {}
    # The networks of the paper are a gigabyte; of them networks.md asks only shapes.
    with torch.device("meta" if page == "networks.md" else "cpu"):
        for block in blocks(page, "python"):
            exec(compile(block, str(PAGES[page]), "exec"), names)


# ---- commands -----------------------------------------------------------------------------------


def code_of(page: str) -> Iterator[str]:
    """Lines of code, continuation lines joined, and code within sentences."""
    text = re.sub(r"\\\n\s*", " ", text_of(page))
    text = re.sub(r"(?ms)^```(?:math|python|cpp|cmake)\n.*?^```", "", text)
    for line in text.splitlines():
        if line.startswith("    "):
            yield from line.strip().split(" && ")
        else:
            yield from re.findall(r"`([^`]+)`", line)


def commands(page: str) -> list[list[str]]:
    """The arguments of every call of the command line, with the page's own shell variables."""
    variables: dict[str, str] = {}
    found = []
    for code in code_of(page):
        code = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), code)
        if assignment := re.fullmatch(r'(\w+)="(.*)"', code):
            variables[assignment[1]] = assignment[2]
            continue
        words = shlex.split(code, comments=True) if code.startswith("fastrcnn-engine ") else []
        if words[1:] and words[1] != "COMMAND":
            found.append(words[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_of_a_page_are_understood(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, *options in commands(page):
        assert name in cli.COMMANDS, name
        if "--config" in options and options[options.index("--config") + 1].endswith(".json"):
            path = Path(options[options.index("--config") + 1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"data": "there"}')
        if not options:
            continue  # a sentence about the command
        try:
            tyro.cli(cli._options_of(name), args=options, **cli._defaults(name, options))
        except SystemExit:
            pytest.fail(f"{name} {shlex.join(options)}\n{capsys.readouterr()}")


def test_the_commands_of_the_docs_are_found():
    """A page that is read wrongly would have none."""
    found = commands("paper.md")
    assert len(found) > 12
    assert ["compress", "--device", "cuda", "--checkpoint", "runs/L"] in found
    assert any("--freeze-to" in command and "caffemodel" in str(command) for command in found)


OPTION = re.compile(r"--\w[\w.-]*")


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Of every command, and of the benchmarks."""
    texts = [path.read_text() for path in (ROOT / "benchmarks").glob("*.py")]
    for name in cli.COMMANDS:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            tyro.cli(cli._options_of(name), args=["--help"])
        texts.append(shown.getvalue())
    return {option for text in texts for option in OPTION.findall(text)}


@every_page
def test_options_in_sentences_are_options(page, options):
    code = [code for code in code_of(page) if code.startswith("--")]
    assert {word for line in code for word in OPTION.findall(line)} <= options


@every_page
def test_scripts_targets_and_extras_that_a_page_names_are_there(page):
    makefile, project = ((ROOT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    for code in code_of(page):
        for script in re.findall(r"\b(?:benchmarks|docs|examples|scripts)/[\w/]+\.(?:py|sh)", code):
            assert (ROOT / script).is_file(), script
        for target in re.findall(r"^make (\w+)$", code):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), code
        for extras in re.findall(r"pip install '\.\[([\w,]+)\]'", code):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), code


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "docs/install.md", "scripts/gpu_check.sh"])
def test_options_of_the_build_are_given_as_debians_pip_takes_them(file):
    """pip 23.0, of Debian 12 and of Python 3.10, does not know `-C`."""
    text = (ROOT / file).read_text()
    options = re.findall(r"(\S+) cmake\.define\.FRCNN_CUDA=", text)
    assert options and set(options) == {"--config-settings"}


# ---- C++ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "file"), [("cpp", "pool_and_suppress.cpp"), ("cmake", "CMakeLists.txt")]
)
def test_the_cpp_guide_shows_the_example(language, file):
    example = (ROOT / "examples/cpp" / file).read_text()
    shown = [block.lstrip("\n") for block in blocks("cpp.md", language)]
    assert shown
    for block in shown:
        assert block in example, block


# ---- links, tests, pictures ---------------------------------------------------------------------


@every_page
def test_files_that_a_page_names_are_there(page):
    text = text_of(page)
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    tests = re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)[`:]", text)
    # A folder is none: GitHub shows it, the site has nothing to show.
    missing = [link for link in links if not (PAGES[page].parent / link).is_file()]
    missing += [name for name in tests if not (ROOT / "tests" / name).is_file()]
    assert not missing


def rows_of(page: str) -> list[list[str]]:
    lines = [line for line in text_of(page).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_test_stands_behind_every_row_of_the_comparison():
    @functools.cache
    def tests_in(file: str) -> set[str]:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    rows = rows_of("comparison.md")
    assert len(rows) > 50
    for row in rows:
        if row[-1] == "test":
            head = row
            continue
        assert len(row) == len(head), row
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
        assert named, row
        assert [f"{file}::{name}" for file, name in named if name not in tests_in(file)] == []


def test_the_pictures_are_what_their_script_draws(tmp_path):
    run(ROOT / "docs/pictures.py", "--out", tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["box-codec.jpg", "nms.jpg", "roi-pool.jpg"]
    for name in drawn:
        both = ROOT / "docs/images" / name, tmp_path / name
        assert max(path.stat().st_size for path in both) < 150_000
        there, here = (np.asarray(Image.open(path), np.float32) for path in both)
        assert there.shape == here.shape
        assert np.abs(there - here).mean() < 4, name  # of 255; JPEG and fonts may differ a little


# ---- the site -----------------------------------------------------------------------------------


def run(*command: object) -> None:
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a link or anchor that leads nowhere and a page without a place are errors."""
    folder = tmp_path_factory.mktemp("site")
    # Not with --quiet: mkdocs counts the warnings that it prints.
    run("-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    return folder


def test_every_page_is_in_the_site(site):
    for page in PAGES:
        html = "overview.html" if page == "README.md" else page.replace(".md", ".html")
        assert (site / html).is_file(), page


def test_the_site_needs_no_network(site):
    for path in site.glob("*.html"):
        html = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"([^\"]+)", html)
        loaded += re.findall(r"<link[^>]*\bhref=\"([^\"]+)", html)
        assert not [url for url in loaded if "//" in url], path.name
        for source in re.findall(r"<img[^>]*\bsrc=\"([^\"]+)", html):
            assert (site / source).is_file(), source


def test_formulas_and_code_are_set(site):
    html = (site / "operators.html").read_text(encoding="utf-8")
    assert html.count("<math") == len(re.findall(r"(?m)^```math|\$`", text_of("operators.md")))
    for path in site.glob("*.html"):
        shown = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
        assert "```" not in shown and "$`" not in shown and "](" not in shown, path.name


def test_every_public_name_is_in_the_api(site):
    html = (site / "api.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="fastrcnn_engine\.(?:\w+\.)*(\w+)"', html))
    public = {"RoIPool", "onnx_translations"}
    for module in (fastrcnn_engine, models, training):
        public |= {name for name in module.__all__ if callable(getattr(module, name))}
    assert public - anchors == {"FreezeTo"}  # names in a type, shown where it is used
    for members in re.findall(r"members: \[(.*)\]", text_of("api.md")):
        assert set(members.split(", ")) <= anchors, members
    # A colon in "Returns:" makes a type of what stands before it.
    for section in re.findall(r"Returns:.*?</ul>", html, re.DOTALL):
        for kind in re.findall(r"<code>(.*?)</code>\s*–", section, re.DOTALL):
            assert kind.count("(") == kind.count(")"), kind
