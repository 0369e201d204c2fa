"""What `import fastrcnn_engine` loads: NumPy and the operators. Time is spent on nothing else. In a
subinterpreter it is refused, not awaited for ever."""

from __future__ import annotations

import sys

from build.steps import run

PROGRAM = """
import sys
before = set(sys.modules)
import fastrcnn_engine
print(*sorted(set(sys.modules) - before))
"""


def test_import_loads_numpy_and_the_operators_alone() -> None:
    result = run(sys.executable, "-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    # NumPy's compiled parts bring names of Cython's.
    assert {p for p in packages if "cython" not in p} == {"fastrcnn_engine", "numpy"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("fastrcnn_engine.")}
    assert rooms == {"_core", "ops"}
    for name in ("autograd", "torch_ops", "onnx_ops"):  # these come with the first call of torch
        assert f"fastrcnn_engine.ops.{name}" not in loaded


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:  # before Python 3.13
    import _xxsubinterpreters as interpreters
PROGRAM = '''
try:
    import fastrcnn_engine
except ImportError as error:
    print(error)
'''
interpreters.run_string(interpreters.create(), PROGRAM)
import fastrcnn_engine  # the main one can, all the same
print(fastrcnn_engine.get_num_threads() > 0)
"""


def test_a_subinterpreter_is_refused_at_once() -> None:
    result = run(sys.executable, "-c", SUBINTERPRETER)
    assert result.returncode == 0, result.stderr
    assert "subinterpreter" in result.stdout and result.stdout.endswith("\nTrue\n")
