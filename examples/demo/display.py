"""What the terminal shows: one line for each part with the time it took, and a bar while the tune goes on.

Used by `__main__`. On a terminal the bar lives; where the output goes to a file or a pipe, every tenth of the way is a
line of its own. Knows numbers and words, not where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn

NAMES = 12  # characters for a part's name
LINES = 10  # of a whole tune, where there is no terminal


class Display:
    """The terminal, or whatever the output goes to."""

    def __init__(self, console: Console | None = None) -> None:
        # Nothing that we print is markup, and a path is to be copied whole: no colours guessed, no lines broken.
        self._console = console or Console(markup=False, highlight=False)
        self._started = time.monotonic()

    def say(self, sentence: str = "") -> None:
        """Prints a line."""
        self._console.print(sentence, soft_wrap=True)

    @contextmanager
    def part(self, name: str, doing: str) -> Iterator[Callable[[str], None]]:
        """A part of the demo; takes the sentence that says what came of it, and prints it with the time."""
        with self._timed(name) as said, self._live(SpinnerColumn("line")) as progress:
            progress.add_task(f"  {name:<{NAMES}}{doing}", total=None, state="")
            yield said

    @contextmanager
    def tuning(self, steps: int) -> Iterator[Bar]:
        """The part with the bar."""
        with self._timed("tune") as said, self._live(BarColumn(14)) as progress:
            task = progress.add_task(f"  {'tune':<{NAMES}}", total=steps, state="waits for the trainer")
            yield Bar(progress, task, steps, self)
            said(f"{steps} steps made")

    def total(self) -> str:
        """How long it has been since the beginning."""
        return f"{time.monotonic() - self._started:.0f} s"

    @contextmanager
    def _timed(self, name: str) -> Iterator[Callable[[str], None]]:
        started = time.monotonic()
        sentences: list[str] = []
        yield sentences.append
        for sentence in sentences:
            self.say(f"  {name:<{NAMES}}{sentence}, {time.monotonic() - started:.1f} s")

    def _live(self, column: ProgressColumn) -> Progress:
        """Gone when it ends: the part's own line takes its place."""
        return Progress(
            TextColumn("{task.description}", markup=False),
            column,
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )


class Bar:
    """How far a tune is. Made by `Display.tuning`."""

    def __init__(self, progress: Progress, task: TaskID, steps: int, display: Display) -> None:
        self._progress, self._task, self._steps, self._display = progress, task, steps, display
        self._tenths = 0  # of the way, as far as lines have told of it

    def move(self, step: int, loss: float, speed: float) -> None:
        """Shows a step, its loss and the speed (steps a second; 0: not known yet)."""
        line = progress_line(step, self._steps, loss, speed)
        self._progress.update(self._task, completed=step, state=line)
        tenths = step * LINES // self._steps
        if self._progress.disable and tenths > self._tenths:
            self._display.say(f"    step {line}")
        self._tenths = tenths


def progress_line(step: int, steps: int, loss: float, speed: float) -> str:
    """Where a tune is. speed: steps a second; 0 where it is not known yet."""
    pace = f"{speed:.1f} steps/s  {(steps - step) / speed:.0f} s left" if speed > 0 else ""
    return f"{step}/{steps}  loss {loss:.4f}  {pace}".rstrip()
