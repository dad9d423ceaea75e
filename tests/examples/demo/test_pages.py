"""The demo's two pictures: every part has its place, and nothing lies on anything else."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from PIL import Image

from examples.demo import pages


def plain(colour: tuple[int, int, int], side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_grid_shows_each_picture_at_its_box() -> None:
    before = [plain((200, 10 * place, 0)) for place in range(5)]
    after = [plain((0, 10 * place, 200)) for place in range(5)]

    page = pages.grid(pages.Comparison("title", [plain((9, 9, 9), 128)] * 8, ["a prompt"] * 5, before, after))

    for row, pictures in enumerate((before, after)):
        for column, picture in enumerate(pictures):
            shown = page.crop(pages.box(row, column, 5))
            assert shown.size == (pages.SHOWN, pages.SHOWN)
            assert (np.asarray(shown) == picture.getpixel((0, 0))).all()


def test_boxes_do_not_overlap_and_lie_on_the_page() -> None:
    page = pages.grid(
        pages.Comparison("t", [plain((9, 9, 9))], ["p"] * 5, [plain((1, 1, 1))] * 5, [plain((2, 2, 2))] * 5)
    )

    boxes = [pages.box(row, column, 5) for row in (0, 1) for column in range(5)]

    assert all(right <= page.width and bottom <= page.height for _, _, right, bottom in boxes)
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_grid_has_room_for_every_training_picture() -> None:
    taught = [plain((255, 0, 0), 128)] * 20

    page = pages.grid(pages.Comparison("t", taught, ["p"] * 3, [plain((1, 1, 1))] * 3, [plain((2, 2, 2))] * 3))

    strip = np.asarray(page.crop((0, pages.TITLE, page.width, pages.TITLE + 1)))[0]
    red = (strip == (255, 0, 0)).all(axis=-1).astype(int)
    assert int((np.diff(red, prepend=0) == 1).sum()) == len(taught)


def test_running_mean_of_a_straight_line_is_the_line_away_from_its_ends() -> None:
    points = [(step, float(step)) for step in range(1, 101)]

    mean = pages.running_mean(points)

    assert mean[20:80] == points[20:80]
    assert [step for step, _ in mean] == [step for step, _ in points]


def test_loss_of_a_single_step_still_makes_a_picture() -> None:
    assert pages.loss_curve({1: 0.2}, "title").size == pages.CURVE
