"""The live line of work on many images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")


def progress_bar(shown: bool) -> Progress:
    """A live line of images done, their speed and the time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),  # the name of a split may hold brackets
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not shown,
    )


@contextmanager
def counted(
    items: Iterable[Item], title: str, total: int, *, shown: bool = True
) -> Iterator[Iterator[Item]]:
    """The items, counted on a live line that ends with the block, whatever ends it.

    That of rich's `track` ends when Python drops its generator. After an error that somebody holds
    that is while a later line begins, and the two wait for each other for ever.
    """
    with progress_bar(shown) as bar:
        task = bar.add_task(title, total=total)

        def one_by_one() -> Iterator[Item]:
            for item in items:
                yield item
                bar.advance(task)

        yield one_by_one()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "- images/s")
