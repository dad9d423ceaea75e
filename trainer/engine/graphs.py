"""Passes of the loop, recorded on a GPU as CUDA graphs and played back. Called by the loop; knows lessons, no model.

A pass through the U-Net of Stable Diffusion 1.5 and back is 6,000 kernels, most of them of a few microseconds: launched
one by one, they keep a processor busy for longer than they keep the GPU. A graph launches all of them at once. They
are the same kernels in the same order, so a deterministic tune's bytes do not depend on which of its passes were
played back.

A graph computes on the memory that it was recorded on. Its inputs are copied there; the LoRA's numbers and gradients
lie still anyway (see lora). Whatever else a pass reads must not change between two of one key: so no dropout, whose
masks are seeded by each lesson, and no activations computed again, which look at the generators' states.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from trainer.engine.lessons import Lesson

Pass = Callable[[Lesson], Tensor]
"""Adds a lesson's gradients to the LoRA's; answers its loss, 0-d."""
Key = tuple[tuple[int, ...], ...]
"""The shapes of a lesson's tensors."""

WARM_UP = 2  # passes of each key that are made as they come: libraries choose their kernels and make their workspaces
MOST = 32  # graphs of one tune: each keeps some tens of megabytes of the driver's

log = logging.getLogger(__name__)


class Recorder:
    """Of one run of the loop. All graphs compute in one pool of memory: they run one after another, and what a pass
    answers is used before the next one begins.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._left = MOST

    def played_back(self, run: Pass) -> Pass:
        """The same pass, recorded for each key when it has come up often enough."""
        graphs: dict[Key, _Graph] = {}
        seen: Counter[Key] = Counter()

        def play(lesson: Lesson) -> Tensor:
            key = _key(lesson)
            if key not in graphs and self._left > 0 and seen[key] >= WARM_UP:
                self._record(run, lesson, key, graphs)
            if (graph := graphs.get(key)) is not None:
                return graph.play(lesson)
            seen[key] += 1
            return run(lesson)

        return play

    def _record(self, run: Pass, lesson: Lesson, key: Key, graphs: dict[Key, _Graph]) -> None:
        try:
            graphs[key] = _Graph(run, lesson, self._pool)
            self._left -= 1
        except torch.OutOfMemoryError:
            raise  # the caller knows what to do
        except RuntimeError:
            # Slower, and right: while a pass is recorded, nothing of it is computed.
            log.warning("Passes are not recorded. action=unrecorded shapes=%s", key, exc_info=True)
            self._left = 0


class _Graph:
    """One pass on memory of its own."""

    def __init__(self, run: Pass, lesson: Lesson, pool: torch.cuda._POOL_HANDLE) -> None:
        text = {name: tensor.clone() for name, tensor in lesson.text.items()}
        self._lesson = replace(lesson, x_0=lesson.x_0.clone(), ε=lesson.ε.clone(), t=lesson.t.clone(), text=text)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._loss = run(self._lesson)

    def play(self, lesson: Lesson) -> Tensor:
        for own, given in zip(_tensors(self._lesson), _tensors(lesson), strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._loss


def _tensors(lesson: Lesson) -> list[Tensor]:
    return [lesson.x_0, lesson.ε, lesson.t, *lesson.text.values()]


def _key(lesson: Lesson) -> Key:
    return tuple(tuple(tensor.shape) for tensor in _tensors(lesson))
