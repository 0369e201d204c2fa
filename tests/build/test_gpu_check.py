"""scripts/gpu_check.sh on programs that pretend there is a GPU, as nobody may find out on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from build.cuda_on_the_cpu import CudaOnTheCpu
from build.steps import ROOT, run

# One program for all of them: notes how it was called, and does what the script looks at.
PRETENDER = '''
import json, os, subprocess, sys, time
from pathlib import Path

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *arguments]) + "\\n")
if name == "nvidia-smi":
    for gpu in range(2):  # each line when it is known
        print(f"GPU {gpu}: NVIDIA H100 80GB HBM3 (UUID: GPU-{gpu})", flush=True)
        time.sleep(0.1)
if name == "compute-sanitizer" and "STOPPED" in os.environ:
    print(os.environ["STOPPED"])
    raise SystemExit(124)  # as from `timeout`
if name in ("ncu", "compute-sanitizer"):
    started = arguments[arguments.index(os.environ["PYTHON"]):]
    status = subprocess.run(started).returncode
    if name == "ncu":
        lines = ["==PROF== Connected to process 1", "==PROF== Disconnected from process 1",
                 '"ID","Kernel Name","gpu__time_duration.sum"', '"","","ns"', '"0","a","15,232"']
        Path(arguments[arguments.index("--log-file") + 1]).write_text("\\n".join(lines) + "\\n")
    raise SystemExit(status)
if name == "python":
    if arguments[0] == "-":
        compile(sys.stdin.read(), "a program of gpu_check.sh", "exec")
    elif arguments[0] != "-m":
        compile(Path(arguments[0]).read_text(), arguments[0], "exec")
    for argument in arguments:
        if argument.startswith("--junitxml="):
            Path(argument.split("=")[1]).write_text('<testsuite skipped="0" tests="2">')
    broken = os.environ.get("BROKEN", "").split()
    raise SystemExit(any(part in argument for part in broken for argument in arguments))
'''


@dataclass(frozen=True)
class Run:
    status: int
    results: dict[str, str]  # of each step
    calls: list[list[str]]
    out: Path


def check(folder: Path, broken: str = "", **environment: str) -> Run:
    """The script, where every call of Python that names one of `broken` fails."""
    programs, out = folder / "bin", folder / "out"
    programs.mkdir()
    for name in ("nvidia-smi", "ncu", "compute-sanitizer", "python"):
        program = programs / name
        program.write_text(f"#!{sys.executable}\n{PRETENDER}")
        program.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(folder / "calls"),
        "PYTHON": str(programs / "python"), "BROKEN": broken, **environment,
    }  # fmt: skip
    done = subprocess.run(
        [ROOT / "scripts/gpu_check.sh", out],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (out / "summary.txt").exists(), done.stdout + done.stderr
    lines = (out / "summary.txt").read_text().splitlines()
    results = {line.split()[0]: line.split(maxsplit=3)[3] for line in lines[:-1]}
    calls = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return Run(done.returncode, results, calls, out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return check(tmp_path_factory.mktemp("gpu_check"))


def collected(arguments: list[str]) -> list[str]:
    """The tests that pytest would run."""
    done = subprocess.run(
        [sys.executable, *arguments, "--collect-only", "-qq"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def files_with_cuda_tests() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "@pytest.mark.cuda\n" in path.read_text()
    )


def test_every_step_is_made_and_its_programs_are_python(whole: Run) -> None:
    assert whole.status == 0
    assert list(whole.results) == [
        "machine", "build", "tests", "roipool", "boxes", "kernels", "memcheck", "racecheck"
    ]  # fmt: skip
    assert {*whole.results.values()} == {"ok"}
    assert len((whole.out / "kernels.csv").read_text().splitlines()) == 3


def test_what_fails_stops_nothing_else(tmp_path: Path) -> None:
    """As after a bad access, or where a benchmark finds another result than its peer's."""
    broken = check(tmp_path, "test_roi_pool_api nms_bench")
    assert broken.status == 1
    failed = [name for name, result in broken.results.items() if result != "ok"]
    assert failed == ["tests", "boxes"]
    arguments = [call[-1] for call in broken.calls if any("junitxml" in word for word in call)]
    assert arguments == files_with_cuda_tests()
    made = {word for call in broken.calls for word in call if word.startswith("benchmarks/")}
    assert {f"benchmarks/{name}_bench.py" for name in ("nms", "detections", "small_calls")} <= made


@pytest.mark.parametrize(
    ("said", "status", "result"),
    [
        ("a_test PASSED [ 3%]", 0, "stopped after 90 s, nothing found so far"),
        ("========= COMPUTE-SANITIZER", 0, "stopped after 90 s, nothing found so far"),
        ("========= ERROR SUMMARY: 0 errors", 0, "stopped after 90 s, nothing found so far"),
        ("a_test FAILED [ 3%]", 1, "FAILED: stopped after 90 s"),
        ("a_test ERROR [ 3%]", 1, "FAILED: stopped after 90 s"),
        ("Fatal Python error: Segmentation fault", 1, "FAILED: stopped after 90 s"),
        ("========= Invalid __global__ write of size 4 bytes", 1, "FAILED: stopped after 90 s"),
        ("========= Error: Potential RAW hazard detected", 1, "FAILED: stopped after 90 s"),
    ],
)
def test_a_sanitizer_that_takes_too_long_fails_where_it_found_something(
    said: str, status: int, result: str, tmp_path: Path
) -> None:
    stopped = check(tmp_path, STOPPED=said)
    assert stopped.status == status
    others = {name: found for name, found in stopped.results.items() if found != "ok"}
    assert others == {"memcheck": result, "racecheck": result}


def test_sanitizers_get_tests_that_they_can_run(whole: Run) -> None:
    """No graph is captured without torch's cache of memory; 60 000 boxes are too many pairs."""
    python = str(whole.out.parent / "bin/python")
    given = {}
    for call in whole.calls:
        if call[0] == "compute-sanitizer" and python in call:
            given[call[call.index("--tool") + 1]] = call[call.index(python) + 1 :]
    memcheck, racecheck = (collected(given[tool]) for tool in ("memcheck", "racecheck"))
    for names in (memcheck, racecheck):
        assert {name.split("::")[0] for name in names} == {
            f"tests/ops/test_{name}.py"
            for name in ("box_codec", "smooth_l1", "detections", "nms", "roi_pool")
        }
        assert not [name for name in names if "graph" in name]
        assert len([name for name in names if "slabs_and_without" in name]) == 24
    more = {*memcheck} - {*racecheck}
    assert len(more) == 4 and all("more_boxes" in name for name in more), given["racecheck"]


# The tests that only a GPU can run, and why.
ONLY_ON_A_GPU = {
    "test_a_cuda_graph_replays_pooling_decoding_and_suppression": "nothing here captures calls",
    "test_a_cuda_graph_replays_pooling_its_gradient_and_the_loss": "nothing here captures calls",
    "test_cuda_gives_zero_where_no_image_is": "on the CPU a bad batch index is an error",
    "test_mixed_devices_are_refused": "the engine sees where memory is",
    "test_cupys_own_arrays_give_the_bits_of_tensors": "needs CuPy; test_cupy_works_on_its_current_"
    "stream_and_in_its_memory does the same with what looks like it",
}


def test_the_tests_for_a_gpu_hold_on_its_stand_in() -> None:
    """So that the first GPU finds what is wrong with the kernels, and not with their tests."""
    files = files_with_cuda_tests()
    defined = "".join((ROOT / file).read_text() for file in files)
    assert not [name for name in ONLY_ON_A_GPU if f"def {name}(" not in defined]
    done = run(
        sys.executable, "-m", "pytest", "-p", "build.cuda_on_the_cpu", "-p", "no:cacheprovider",
        "-m", "cuda", "-k", f"not ({' or '.join(ONLY_ON_A_GPU)})", *files,
        PYTHONPATH=str(ROOT / "tests"),
    )  # fmt: skip
    assert done.returncode == 0 and " skipped" not in done.stdout, done.stdout + done.stderr


def test_the_stand_in_is_no_easier_than_a_gpu() -> None:
    with CudaOnTheCpu():
        here = torch.ones(2)
        there = here.to("cuda")
        made = torch.zeros(2, device="cuda") + there
        assert [x.device.type for x in (there, made, made.cpu(), here)] == [
            "cuda", "cuda", "cpu", "cpu"
        ]  # fmt: skip
        assert there.to(torch.device("cuda")) is there and here.cpu() is here
        there.add_(1)
        assert there.tolist() == [2, 2] and here.tolist() == [1, 1]
        with pytest.raises(TypeError, match="GPU is no NumPy array"):
            there.numpy()
        with pytest.raises(RuntimeError, match="add of tensors on the GPU and on the CPU"):
            there.add(here)
        layer = torch.nn.Linear(2, 1).to("cuda")
        with pytest.raises(RuntimeError, match="linear of tensors on the GPU and on the CPU"):
            layer(here)
        layer(there).sum().backward()
        gradient = layer.weight.grad
        assert gradient is not None and gradient.device.type == "cuda"
        assert layer.cpu().weight.device.type == gradient.device.type == "cpu"
