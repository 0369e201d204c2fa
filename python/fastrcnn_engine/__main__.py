"""`python -m fastrcnn_engine` is `fastrcnn-engine`."""

from __future__ import annotations

from fastrcnn_engine.cli import main

if __name__ == "__main__":
    main()
