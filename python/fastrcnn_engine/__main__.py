"""`python -m fastrcnn_engine` and the script `fastrcnn-engine`.

The package installs without what the command line needs; asked for it, it says what is missing.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point; see cli.main. Exit code 2 when a package of the extra `train` is missing."""
    try:
        from fastrcnn_engine import cli
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "fastrcnn_engine":
            raise  # a broken installation, not a missing extra
        print(
            f"fastrcnn-engine: the package {missing!r} is missing; "
            "pip install '.[train]' in the checkout brings what the commands need",
            file=sys.stderr,
        )
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
