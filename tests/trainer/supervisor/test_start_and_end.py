"""How a supervisor starts, and how it leaves: on SIGTERM, drained, replaced, refused."""

import asyncio
import json
import socket
from pathlib import Path

import grpc
import pytest

from tests.servers.certificates import Authority
from tests.trainer.supervisor.conftest import Bench, first_step, sign_put, welcomed
from tests.trainer.supervisor.fake_gateway import FakeGateway
from trainer.supervisor.connection import DuplicateTrainer, Refused
from trainer.supervisor.supervisor import CannotStart
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


async def test_sigterm_gives_the_tune_back(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await first_step(stream)

    leaving = asyncio.create_task(bench.stop(supervisor))
    draining = await stream.hear("draining")
    returned = await stream.hear("lease_returned")
    await stream.acknowledge(returned)
    await leaving

    assert draining.reason
    assert returned.step == 1
    await asyncio.wait_for(stream.ended.wait(), 10)


async def test_sigterm_waits_for_the_second_tune_too(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    await sign_put(bench, stream)
    await stream.acknowledge(await stream.hear("finished"))
    await stream.say(assign=bench.assign("waits", "tune_2"))
    await stream.hear("event")

    leaving = asyncio.create_task(bench.stop(supervisor))
    returned = await stream.hear("lease_returned")
    assert not leaving.done()
    await stream.acknowledge(returned)
    await leaving


async def test_an_idle_supervisor_leaves_at_once(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)

    await bench.stop(supervisor)

    await asyncio.wait_for(stream.ended.wait(), 10)


async def test_a_supervisor_without_a_gateway_leaves_at_once(bench: Bench) -> None:
    supervisor, _ = await welcomed(bench, grace=60.0)
    await bench.gateway.stop()

    async with asyncio.timeout(20):
        await bench.stop(supervisor)


async def test_a_drained_trainer_takes_no_more(bench: Bench) -> None:
    _, stream = await welcomed(bench)

    await stream.say(drain=pb.Drain(reason="maintenance"))
    await stream.say(assign=bench.assign())

    assert (await stream.hear("rejected")).reason == "DRAINING"


async def test_a_replaced_process_ends_with_duplicate_trainer(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)

    await stream.said.put(grpc.StatusCode.ALREADY_EXISTS)

    with pytest.raises(DuplicateTrainer):
        await asyncio.wait_for(bench.running.pop(supervisor), 20)


async def test_a_refused_token_ends_the_process(bench: Bench) -> None:
    supervisor = bench.start()
    stream = await bench.gateway.stream()

    await stream.said.put(grpc.StatusCode.UNAUTHENTICATED)

    with pytest.raises(Refused, match="UNAUTHENTICATED"):
        await asyncio.wait_for(bench.running.pop(supervisor), 20)


async def test_two_supervisors_do_not_share_a_data_folder(bench: Bench) -> None:
    await welcomed(bench)

    second = bench.start()

    with pytest.raises(CannotStart, match="TUNESMITH_DATA"):
        await bench.running.pop(second)


async def test_a_taken_metrics_port_is_named(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        second = bench.start(metrics=f"127.0.0.1:{taken.getsockname()[1]}")

        with pytest.raises(CannotStart, match="TUNESMITH_METRICS"):
            await bench.running.pop(second)


async def test_the_ready_file_says_where_metrics_are(bench: Bench, tmp_path: Path) -> None:
    supervisor, _ = await welcomed(bench, ready_file=tmp_path / "ready.json")

    await asyncio.wait_for(supervisor.ready.wait(), 20)
    ready = await asyncio.to_thread((tmp_path / "ready.json").read_text)

    assert json.loads(ready) == {"metrics": supervisor.metrics_url}


async def test_mutual_tls_needs_no_token(bench: Bench, tmp_path: Path) -> None:
    credentials = await asyncio.to_thread(certificates, tmp_path)
    gateway = FakeGateway()
    await gateway.start(credentials=credentials)

    trainer = bench.start(
        gateways=f"localhost:{gateway.port}",
        insecure=False,
        trainer_token="",
        tls_ca=tmp_path / "ca.pem",
        tls_certificate=tmp_path / "trainer-1.pem",
        tls_key=tmp_path / "trainer-1.key",
    )
    stream = await gateway.stream()
    hello = await stream.welcome()
    await bench.kill(trainer)
    await gateway.stop()

    assert hello.trainer_id == "trainer-1"
    assert "authorization" not in gateway.metadata
    assert gateway.common_names == [b"trainer-1"]


def certificates(folder: Path) -> grpc.ServerCredentials:
    """An authority and certificates of localhost and trainer-1; returns the server's."""

    authority = Authority(folder)
    shown = authority.sign("localhost")
    authority.sign("trainer-1")
    pair = shown.key.read_bytes(), shown.certificate.read_bytes()
    return grpc.ssl_server_credentials([pair], authority.certificate.read_bytes(), True)
