"""Exception to reason."""

from __future__ import annotations

import errno

import pytest
import torch

from trainer.failures import Diverged, InvalidRecipe, TuneFault, UnknownEngine, failure_of


@pytest.mark.parametrize(
    ("fault", "reason", "retryable"),
    [
        (InvalidRecipe("rank is 0"), "INVALID_RECIPE", False),
        (UnknownEngine("no"), "UNKNOWN_ENGINE", True),
        (Diverged("NaN"), "DIVERGED", False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore"), "OUT_OF_MEMORY", True),
        (MemoryError(), "OUT_OF_MEMORY", True),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL", True),
        (OSError(errno.EIO, "Input/output error"), "DISK_FAULT", True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "DEVICE_FAULT", True),
        (RuntimeError("CUDA driver error: device not ready"), "DEVICE_FAULT", True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "DEVICE_FAULT", True),
        (KeyError("ours"), "INTERNAL", False),
    ],
)
def test_each_fault_has_its_reason(fault: Exception, reason: str, retryable: bool) -> None:
    failure = failure_of(fault)

    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert failure.details
    assert "\n" not in failure.details


def test_a_host_without_memory_is_told_as_such_and_another_may_have_more() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 46)  # 256 TiB

    failure = failure_of(raised.value)

    assert (failure.reason, failure.retryable, failure.fatal) == ("OUT_OF_MEMORY", True, False)


def test_a_device_that_faulted_ends_its_process() -> None:
    assert failure_of(RuntimeError("CUDA error: device-side assert triggered")).fatal
    assert not failure_of(torch.OutOfMemoryError("no")).fatal


def test_every_reason_is_one_of_a_kind() -> None:
    reasons = [kind.reason for kind in TuneFault.__subclasses__()]

    assert len(set(reasons)) == len(reasons)
    assert all(kind.__doc__ for kind in TuneFault.__subclasses__())
