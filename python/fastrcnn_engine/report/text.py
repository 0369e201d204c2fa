"""Names and numbers as they are shown, in reports and on a console."""

from __future__ import annotations

import re

# Control characters (of lines, of a terminal), what turns the direction of writing, and halves of
# characters.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def spelt_out(text: str) -> str:
    """A text in one line, with what is no letter but an order spelt out: a name of a class or file
    may hold anything, also what a terminal obeys or a font has no picture of."""
    return _UNSHOWN.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


def number(value: float | None) -> str:
    """Three decimals; n/a for None."""
    return "n/a" if value is None else f"{value:.3f}"


def several(count: int, what: str) -> str:
    """`1 image without objects`, `2 images without objects`, `2 classes`."""
    if count != 1:  # the first word becomes many
        what = re.sub(r"^\w+", lambda one: one[0] + ("es" if one[0][-1] in "sx" else "s"), what)
    return f"{count} {what}"
