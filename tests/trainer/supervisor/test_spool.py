"""Reports outlive the process that wrote them."""

import asyncio
import threading
from pathlib import Path

import pytest

from trainer.supervisor.leases import Lease
from trainer.supervisor.spool import Report, Spool
from tunesmith.trainer.v1 import trainer_service_pb2 as pb

LEASE = Lease("tune_1", 3)


def warning() -> pb.TrainerMessage:
    return pb.TrainerMessage(event=pb.Event(lease=LEASE.message(), warning=pb.Warning(reason="SLOW")))


def finished() -> pb.TrainerMessage:
    lora = pb.UploadedObject(name="lora.safetensors", sha256="0" * 64, size_bytes=4)
    return pb.TrainerMessage(finished=pb.Finished(lease=LEASE.message(), lora=lora, step=9, pictures=1))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.recover()
    return spool


async def test_reports_are_numbered_without_gaps(spool: Spool) -> None:
    numbers = [(await spool.append(LEASE, warning())).seq for _ in range(3)]

    assert numbers == [1, 2, 3]
    assert [report.message.event.report_seq for report in spool.waiting(LEASE)] == [1, 2, 3]


async def test_numbers_go_on_after_an_acknowledgement(spool: Spool) -> None:
    await spool.append(LEASE, warning())
    await spool.acknowledged(LEASE, 1)

    assert (await spool.append(LEASE, warning())).seq == 2


async def test_a_result_and_its_file_are_there_after_a_restart(spool: Spool, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"lora")
    await spool.append(LEASE, warning())
    await spool.append(LEASE, finished(), lora)

    again = Spool(tmp_path / "spool")
    (terminal,) = again.recover()

    assert not lora.exists()
    assert (terminal.lease, terminal.seq, terminal.arm, terminal.uploaded) == (LEASE, 2, "finished", False)
    assert terminal.file is not None
    assert terminal.file.read_bytes() == b"lora"
    assert [report.seq for report in again.waiting(LEASE)] == [1, 2]


async def test_what_has_no_result_is_swept_at_a_restart(spool: Spool, tmp_path: Path) -> None:
    await spool.append(LEASE, warning())

    assert Spool(tmp_path / "spool").recover() == []
    assert not list((tmp_path / "spool").iterdir())


async def test_a_half_written_report_does_not_count(spool: Spool, tmp_path: Path) -> None:
    await spool.append(LEASE, finished())
    (tmp_path / "spool" / str(LEASE) / ".00000002.report.part").write_bytes(b"\x0a")

    (terminal,) = Spool(tmp_path / "spool").recover()

    assert terminal.seq == 1


async def test_a_damaged_result_is_left_out_not_sent(spool: Spool, tmp_path: Path) -> None:
    await spool.append(LEASE, finished())
    (tmp_path / "spool" / str(LEASE) / "00000001.report").write_bytes(b"\xff\xff\xff")

    assert Spool(tmp_path / "spool").recover() == []


async def test_the_acknowledgement_of_a_result_deletes_all_of_it(spool: Spool, tmp_path: Path) -> None:
    await spool.append(LEASE, warning())
    await spool.append(LEASE, finished())

    await spool.acknowledged(LEASE, 2)

    assert spool.waiting(LEASE) == []
    assert not list((tmp_path / "spool").iterdir())


async def test_a_report_whose_caller_is_cancelled_keeps_its_number_and_the_next_one_its_file(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a snapshot was just being reported when the LoRA came."""
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"lora")
    writing, go_on = threading.Event(), threading.Event()
    write = spool._write

    def slow(report: Report) -> None:
        writing.set()
        assert go_on.wait(20)
        write(report)

    monkeypatch.setattr(spool, "_write", slow)
    first = asyncio.create_task(spool.append(LEASE, warning()))
    await asyncio.to_thread(writing.wait, 20)

    first.cancel()
    second = asyncio.create_task(spool.append(LEASE, finished(), lora))
    await asyncio.wait([first])
    go_on.set()
    report = await second

    assert [each.seq for each in spool.waiting(LEASE)] == [1, 2]
    assert report.file is not None
    assert report.file.read_bytes() == b"lora"
    (terminal,) = Spool(tmp_path / "spool").recover()
    assert (terminal.seq, terminal.arm) == (2, "finished")


async def test_a_disk_that_is_full_for_the_report_does_not_lose_the_file(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"lora")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.durable.os.fsync", full)

    report = await spool.append(LEASE, finished(), lora)

    assert report.file is not None
    assert report.file.read_bytes() == b"lora"


async def test_a_full_disk_keeps_the_report_in_memory(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "spool" / str(LEASE)).write_bytes(b"in the way")  # as any OSError

    report = await spool.append(LEASE, finished())

    assert spool.waiting(LEASE) == [report]
