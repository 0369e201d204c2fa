"""What each command does. A module is imported once one of its commands has been chosen."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.text import Text

from fastrcnn_engine.report.text import spelt_out


class _PlainConsole(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        lines = "\n".join(map(spelt_out, text.split("\n")))
        return super().render_str(lines, **options)


def plain_console() -> Console:
    """The console of every command. It prints texts as they are: a path or the name of a class may
    hold brackets, which are no markup, or colons around a word, which are no emoji. What a terminal
    would obey is spelt out."""
    console = _PlainConsole(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160  # a file or a pipe is not 80 columns wide: paths stay whole
    return console
