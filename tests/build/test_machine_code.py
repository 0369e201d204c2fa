"""The machine code of every kernel: no spills, no stack, and the instructions it was written for.

Nothing runs, so no GPU is needed: nvcc compiles, its assembler says what memory a kernel takes
beside its registers, and a disassembler which instructions it is made of.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from build.steps import ROOT, cmake, run

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")

# Added by whichever thread comes first, a sum would depend on the run. sm_90 writes REDG for RED;
# REDUX, which stays within a warp, is none of them.
ATOMICS = ("ATOM", "ATOMG", "ATOMS", "RED", "REDG")
# Bits that are put into a word of shared memory are the same whichever thread comes first.
SAME_IN_ANY_ORDER = "ATOMS.OR"
LOCAL = ("LDL", "STL")
# Where the compiler does not know which memory a pointer is into: slower than LDS and STS.
GENERIC = ("LD", "ST")

# Kernels by a pattern in their names: instructions that each of them must have, and must not have.
INSTRUCTIONS = {
    "pool_slabs_kernel": (("LDS.128",), LOCAL + GENERIC),  # whole vectors from shared memory
    # two maxima an instruction
    "pool_slabs_kernel<(float16|bfloat16)": (("HMNMX2",), ()),
    "pool_directly_kernel": (("LDG",), LOCAL + GENERIC),
    "scatter_kernel<.*true>": (("LDS", "STS", SAME_IN_ANY_ORDER), LOCAL + GENERIC + ATOMICS),
    "scatter_kernel<.*false>": (("LDG", "STG"), LOCAL + GENERIC + ATOMICS),
    "gather_kernel": (("LDS", "STS"), LOCAL + GENERIC),
    "rank_kernel": (("LDS.128",), LOCAL + GENERIC),  # two boxes a load, or one of float64
    "compare_kernel": (("LDS.128", "STS.128"), LOCAL + GENERIC),
    "keep_kernel": (("LDS.128",), LOCAL + GENERIC),
}
# The first architecture that has it, where not all have.
FIRST = {"HMNMX2": "sm_80"}
# So many loads, or more, are under way before the first of them is waited for, at one place of the
# kernel: each wait is hundreds of cycles. A condition between two of them, and the compiler keeps
# them apart.
LOADS_TOGETHER = {
    "pool_slabs_kernel": 8, "scatter_kernel": 8, "gather_kernel": 8, "keep_kernel": 16,
    "forward_kernel": 8,
}  # fmt: skip
# So many registers a thread at the most on sm_90: with more, a multiprocessor takes fewer than 8
# blocks of 64 threads, and the 512 channels of two images are not one wave on an H100 any more.
REGISTERS = {"scatter_kernel<": 128}


@dataclass(frozen=True)
class Source:
    """One file of cuda/ as nvcc compiled it for one architecture."""

    name: str
    architecture: str
    code: Path  # without the host's part
    log: str  # of the assembler


def search_path() -> str:
    """PATH, and where the Python packages nvidia-cuda-* put their programs."""
    folders = Path(sysconfig.get_path("purelib"), "nvidia").glob("**/bin")
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    if shutil.which(os.environ.get("CUDACXX", "nvcc")) is None:
        pytest.skip("needs nvcc, on PATH or named by CUDACXX")
    folder = tmp_path_factory.mktemp("machine_code")
    done = run(
        cmake(), "-S", ROOT, "-B", folder, "-DFRCNN_CUDA=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        "-DCMAKE_CUDA_ARCHITECTURES=" + ";".join(f"{a[3:]}-real" for a in ARCHITECTURES),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    commands = json.loads((folder / "compile_commands.json").read_text())
    commands = {Path(c["file"]): c["command"] for c in commands if c["file"].endswith(".cu")}
    assert commands.keys() == set((ROOT / "cuda").glob("*.cu")), "CMakeLists.txt names other files"
    contracted = [path.name for path, words in commands.items() if " --fmad=false " not in words]
    assert not contracted, f"other bits than the CPU's, which only a GPU would show: {contracted}"

    def compiled(one: tuple[Path, str]) -> Source:
        """By the build's own command, but for what it makes of the host's part: nothing."""
        path, architecture = one
        code = folder / f"{path.stem}.{architecture}.fatbin"
        words = shlex.split(commands[path])
        words[words.index("-c")] = "-fatbin"
        words[words.index("-o") + 1] = str(code)
        others = [w for w in words if "code=" in w and f"code=[{architecture}]" not in w]
        assert len(others) == len(ARCHITECTURES) - 1, commands[path]
        words = [word for word in words if word not in others]
        done = run(cmake(), "-E", "chdir", folder, *words, "-Xptxas=-v")
        assert done.returncode == 0, done.stderr
        return Source(path.name, architecture, code, done.stderr)

    # The one with the most kernels first, or the others would end long before it.
    paths = sorted(commands, key=lambda path: (path.name != "roi_pool.cu", path))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, itertools.product(paths, ARCHITECTURES)))


@pytest.fixture(scope="module")
def instructions(sources: list[Source]) -> dict[tuple[str, str], list[str]]:
    """(architecture, kernel): what it is made of, such as "LDS.128 R4, [R2+0x10]", in order."""
    path = search_path()
    disassembler = shutil.which("cuobjdump", path=path)
    if disassembler is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("needs cuobjdump and nvdisasm: nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm")
    instruction = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][^;]*);")
    found: dict[tuple[str, str], list[str]] = {}

    def disassemble(source: Source) -> None:
        done = run(disassembler, "-sass", source.code, PATH=path)
        assert done.returncode == 0, done.stderr
        code: list[str] = []
        for line in done.stdout.splitlines():
            if "code for sm_" in line:
                assert line.split()[-1] == source.architecture
            elif "Function :" in line:
                code = found.setdefault((source.architecture, line.split()[-1]), [])
            elif match := instruction.match(line):
                code.append(match[1])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(disassemble, sources))
    return found


def readable(functions: set[str]) -> dict[str, str]:
    """The functions' names in C++, without parameters and the namespaces they share."""
    names = sorted(functions)
    if not names:  # c++filt would read what is typed
        return {}
    lines = run("c++filt", "--no-params", *names).stdout.splitlines()
    shared = re.compile(r"fastrcnn_engine::(cuda::)?(\(anonymous namespace\)::)?|^void ")
    return {name: shared.sub("", line) for name, line in zip(names, lines, strict=True)}


def test_no_function_spills_or_has_a_stack(sources: list[Source]) -> None:
    faults, functions = [], set()
    for source in sources:
        lines = source.log.splitlines()
        for line, following in zip(lines, lines[1:], strict=False):
            if match := re.search(r"Compiling entry function '\w+' for '(\w+)'", line):
                assert match[1] == source.architecture
            elif match := re.search(r"Function properties for (\S+)", line):
                functions.add((source.architecture, match[1]))
                if any(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes", following)):
                    faults.append((source.name, source.architecture, match[1], following.strip()))
    assert {architecture for architecture, _ in functions} == set(ARCHITECTURES)
    names = readable({function for _, _, function, _ in faults})
    assert not faults, "\n".join(f"{file}, {a}, {names[f]}: {x}" for file, a, f, x in faults)


@pytest.mark.parametrize("pattern", REGISTERS)
def test_registers_leave_room_for_blocks(sources: list[Source], pattern: str) -> None:
    used = {}
    for source in sources:
        if source.architecture == "sm_90":
            found = re.findall(r"properties for (\S+)\n.*\n.*Used (\d+) registers", source.log)
            used.update({function: int(count) for function, count in found})
    names = readable(set(used))
    counts = {names[f]: count for f, count in used.items() if re.search(pattern, names[f])}
    assert counts, "no kernel has such a name"
    assert max(counts.values()) <= REGISTERS[pattern], counts


def uses(opcodes: set[str], wanted: str) -> bool:
    """Whether one is `wanted`, with or without further modifiers: LDS.U.128 is an LDS.128."""
    name, *modifiers = wanted.split(".")
    return any(o.split(".")[0] == name and {*modifiers} <= {*o.split(".")} for o in opcodes)


def kernels_named(
    pattern: str, instructions: dict[tuple[str, str], list[str]]
) -> dict[str, tuple[str, list[str]]]:
    """By a name to tell: the architecture of each kernel, and its instructions."""
    names = readable({function for _, function in instructions})
    kernels = {
        f"{architecture}, {names[function]}": (architecture, code)
        for (architecture, function), code in instructions.items()
        if re.search(pattern, names[function])
    }
    assert {a for a, _ in kernels.values()} == set(ARCHITECTURES), "no kernel has such a name"
    return kernels


@pytest.mark.parametrize("pattern", INSTRUCTIONS)
def test_kernels_are_made_of_the_instructions_meant(
    instructions: dict[tuple[str, str], list[str]], pattern: str
) -> None:
    needed, refused = INSTRUCTIONS[pattern]
    faults = []
    for name, (architecture, code) in kernels_named(pattern, instructions).items():
        used = {line.split()[0] for line in code}
        known = [o for o in needed if int(architecture[3:]) >= int(FIRST.get(o, "sm_0")[3:])]
        wrong = [f"lacks {o}" for o in known if not uses(used, o)]
        # What is needed is meant, though others of its name are refused.
        used = {opcode for opcode in used if opcode not in needed}
        wrong += [f"has {o}" for o in refused if uses(used, o)]
        if wrong:
            faults.append(f"{name}: {', '.join(wrong)}")
    assert not faults, "\n".join(faults)


def loads_together(code: list[str]) -> int:
    """The most loads from device memory in a row of which none is needed before the last.

    A branch ends a row, and so does what names a register that is on its way.
    """
    most, row, on_their_way = 0, 0, set()
    for line in code:
        opcode, _, operands = line.partition(" ")
        registers = {int(number) for number in re.findall(r"\bR(\d+)", operands)}
        if opcode.startswith(("BRA", "BAR", "BSYNC", "CALL", "RET")) or registers & on_their_way:
            row, on_their_way = 0, set()
        if opcode.startswith("LDG"):
            first = int(operands.split(",")[0].strip()[1:])
            size = {"64": 2, "128": 4}.get(opcode.rpartition(".")[2], 1)
            row, on_their_way = row + 1, on_their_way | {*range(first, first + size)}
            most = max(most, row)
    return most


@pytest.mark.parametrize("pattern", LOADS_TOGETHER)
def test_loads_are_under_way_together(
    instructions: dict[tuple[str, str], list[str]], pattern: str
) -> None:
    kernels = kernels_named(pattern, instructions)
    found = {name: loads_together(code) for name, (_, code) in kernels.items()}
    fewer = [f"{name}: {n}" for name, n in found.items() if n < LOADS_TOGETHER[pattern]]
    assert not fewer, "\n".join(fewer)


def test_loads_that_wait_for_each_other_are_told_apart() -> None:
    one, other = "LDG.E R2, desc[UR4][R8.64]", "LDG.E R4, desc[UR4][R8.64+0x4]"
    assert loads_together([one, "IADD3 R6, R8, 0x1, RZ", other]) == 2
    assert loads_together([one, "IADD3 R6, R2, 0x1, RZ", other]) == 1
    assert loads_together([one, "BRA 0x20", other]) == 1
    assert loads_together(["LDG.E.64 R8, desc[UR4][R2.64]", "LDG.E R4, desc[UR4][R9.64]"]) == 1


def test_uses_tells_instructions_apart() -> None:
    opcodes = {"LDS.U.128", "REDUX.MAX.S32", "ATOMS.CAST.SPIN", "STG.E.64"}
    assert uses(opcodes, "LDS.128") and uses(opcodes, "LDS") and uses(opcodes, "ATOMS")
    assert not any(uses(opcodes, o) for o in ("LDS.64", "RED", "ATOM", "STG.128", "LD"))
