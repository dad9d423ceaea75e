"""What the terminal shows: a bar where there is a terminal, lines where there is none."""

from __future__ import annotations

import io
from contextlib import suppress

import pytest
from rich.console import Console

from examples.demo.display import Display, progress_line


def test_line_says_step_loss_speed_and_time_left() -> None:
    assert progress_line(150, 300, 0.04213, 15.0) == "150/300  loss 0.0421  15.0 steps/s  10 s left"


def test_line_leaves_out_a_speed_that_is_not_known_yet() -> None:
    assert progress_line(1, 300, 0.04213, 0.0) == "1/300  loss 0.0421"


@pytest.mark.parametrize("steps", [3, 10, 300])
def test_output_to_a_file_has_ten_lines_at_most_and_the_last_step_among_them(steps: int) -> None:
    output = io.StringIO()

    with Display(Console(file=output)).tuning(steps) as tuning:
        for step in range(1, steps + 1):
            tuning.move(step, 0.1, 15.0)

    *lines, part = output.getvalue().splitlines()
    assert len(lines) == min(steps, 10)
    assert f"step {steps}/{steps}" in lines[-1]
    assert part.startswith(f"  tune        {steps} steps made, ")
    assert "\x1b" not in output.getvalue()


def test_bar_fits_a_terminal_of_eighty_columns() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, _environ={"TERM": "xterm"})

    with Display(console).tuning(1200) as tuning:
        tuning.move(1000, 0.1, 12.5)

    assert "1000/1200  loss 0.1000  12.5 steps/s  16 s left" in output.getvalue()


def test_part_that_fails_prints_no_line() -> None:
    output = io.StringIO()

    with suppress(ValueError), Display(Console(file=output)).part("pictures", "uploading") as said:
        said("8 uploaded")
        raise ValueError("one of them is broken")

    assert output.getvalue() == ""
