"""`python -m fastrcnn_engine` and the script `fastrcnn-engine`.

The package installs without what the command line needs; asked for it, it says what is missing.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import NoReturn


def main() -> None:
    """Entry point; see cli.main. Exit code 2 when a package of the extra `train` is missing; 1
    where nobody reads the output any more, as after `| head`, or its end cannot be written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name it has no letters for stops no training
        sys.stdout.reconfigure(errors="backslashreplace")
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "40"  # in a few columns tyro breaks lines for ever, into all memory
    try:
        from fastrcnn_engine import cli
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "fastrcnn_engine":
            raise  # a broken installation, not a missing extra
        if sys.argv[1:] == ["env"]:
            from fastrcnn_engine.report.environment import print_environment

            print_environment()
            return
        print(
            f"fastrcnn-engine: the package {missing!r} is missing; "
            "pip install '.[train]' -c constraints.txt in the checkout brings what the commands "
            "need",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # as cli.main ends, which was not there yet
    try:
        cli.main()
    except BrokenPipeError as error:
        _give_up(error)
    finally:
        try:
            if sys.stdout is not None:  # whoever started the program may have closed it
                sys.stdout.flush()
        except OSError as error:
            _give_up(error)


def _give_up(error: OSError) -> NoReturn:
    """Ends the program, whose output cannot be written. A reader that has gone is no error."""
    if not isinstance(error, BrokenPipeError):
        print(f"fastrcnn-engine: cannot write the output: {error.strerror}", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more
    sys.exit(1)


if __name__ == "__main__":
    main()
