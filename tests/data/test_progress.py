"""The live line of long work."""

from __future__ import annotations

import threading

import pytest

from fastrcnn_engine.data.progress import counted


def test_a_line_counts_and_ends_with_its_block(capsys):
    before = set(threading.enumerate())
    for shown in (True, False):
        with counted(iter("abc"), "letters", 3, shown=shown) as letters:
            assert "".join(letters) == "abc"
        assert ("letters" in (said := capsys.readouterr().out)) is shown
        assert ("3/3" in said) is shown
    # Who holds the error holds what was under way in it.
    with pytest.raises(ZeroDivisionError) as error, counted("abc", "letters", 3) as letters:
        for letter in letters:
            int(letter, 36) // 0
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread
    assert error.traceback
    with counted("abc", "letters", 3) as letters:
        assert "".join(letters) == "abc"
