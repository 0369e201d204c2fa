"""The live line of a training run."""

from __future__ import annotations

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressLine:
    """Iterations done, loss, learning rate, time spent and time left; silent when not enabled."""

    def __init__(self, start: int, total: int, *, enabled: bool = True):
        self.loss: float | None = None
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            disable=not enabled,
        )
        self.task = self.bar.add_task("", total=total, completed=start, state="")

    def __enter__(self) -> ProgressLine:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def update(self, done: int, loss: float, rate: float) -> None:
        """Show iteration ``done``; the loss is smoothed, a single batch says little."""
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        self.bar.update(self.task, completed=done, state=f"loss {self.loss:.3f}  lr {rate:.2g}")
