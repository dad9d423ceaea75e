"""What a supervisor survives: its engine and itself dying, gateways and object stores away, leases in doubt."""

import asyncio
import os
import signal

import grpc
import pytest

from tests.trainer.supervisor.conftest import Bench, first_step, next_idle_beat, sign_put, signed, welcomed
from tests.trainer.supervisor.fake_gateway import FakeGateway
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


async def test_a_killed_engine_is_reported_at_once_as_a_crash(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)

    await stream.say(assign=bench.assign("dies"))
    failed = await stream.hear("failed")
    await stream.acknowledge(failed)
    await stream.say(assign=bench.assign("quick", "tune_2"))
    accepted = await stream.hear("accepted")
    await sign_put(bench, stream)
    finished = await stream.hear("finished")

    assert (failed.reason, failed.crashed, failed.retryable) == ("ENGINE_DIED", True, True)
    assert "SIGKILL" in failed.details
    assert accepted.lease.tune_id == finished.lease.tune_id == "tune_2"
    assert supervisor.engine.restarts == 1


async def test_a_hung_engine_is_killed_by_the_step_deadline(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine hangs: its process group is killed, and the attempt has crashed. One step is enough to go by."""
    monkeypatch.setattr("trainer.supervisor.child.STEP_FACTOR", 2.0)
    _, stream = await welcomed(bench, step_deadline=0.3)

    await stream.say(assign=bench.assign("hangs"))
    failed = await stream.hear("failed")

    assert (failed.reason, failed.crashed, failed.retryable) == ("ENGINE_HUNG", True, True)


async def test_an_engine_that_dies_idle_comes_back_and_the_gateway_hears_of_it(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    assert (await stream.hear("heartbeat")).free_slots == 1
    assert supervisor.engine.pid is not None

    os.kill(supervisor.engine.pid, signal.SIGKILL)

    assert (await stream.hear("heartbeat")).free_slots == 0
    assert (await stream.hear("heartbeat")).free_slots == 1


async def test_a_fault_of_the_tune_leaves_the_engine_alive(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    pid = supervisor.engine.pid

    await stream.say(assign=bench.assign("breaks"))
    failed = await stream.hear("failed")

    assert (failed.reason, failed.crashed, failed.retryable) == ("NAN_LOSS", False, False)
    assert supervisor.engine.pid == pid


async def test_a_result_survives_the_supervisor(bench: Bench) -> None:
    first, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    await sign_put(bench, stream)
    await stream.hear("finished")
    await bench.kill(first)

    bench.start()
    stream = await bench.gateway.stream()
    hello = await stream.welcome(action=pb.HELD_ACTION_SEND_RESULT)
    first_report = await stream.hear("event")
    await sign_put(bench, stream)
    finished = await stream.hear("finished")
    await stream.acknowledge(finished, pb.REPORT_OUTCOME_ALREADY_RECORDED)
    beat = await next_idle_beat(stream, bench)

    assert [(held.lease.tune_id, held.result_pending) for held in hello.held] == [("tune_1", True)]
    assert hello.held[0].step == 3
    assert first_report.report_seq == 1
    assert finished.lora.name == "lora.safetensors"
    assert beat.free_slots == 1


async def test_a_supervisor_killed_amid_a_tune_restates_nothing(bench: Bench) -> None:
    first, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("event")
    await bench.kill(first)

    bench.start()
    stream = await bench.gateway.stream()
    hello = await stream.welcome()

    assert not hello.held
    assert not list((bench.folder / "data" / "spool").iterdir())


async def test_the_engine_ends_with_its_supervisor(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await first_step(stream)
    pid = supervisor.engine.pid
    assert pid is not None

    await bench.kill(supervisor)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_training_goes_on_while_the_gateway_is_away(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    event = await stream.hear("event")
    await stream.acknowledge(event)
    await first_step(stream)

    port = bench.gateway.port
    await bench.gateway.stop()
    bench.go()
    await bench.gateway.start(port)
    stream = await bench.gateway.stream()
    hello = await stream.welcome()
    resent = await stream.hear("event")
    await sign_put(bench, stream)
    finished = await stream.hear("finished")

    assert [held.lease for held in hello.held] == [pb.Lease(tune_id="tune_1", epoch=1)]
    assert resent.HasField("resolved_recipe")
    assert resent.report_seq == 2
    assert finished.report_seq == 3


async def test_a_new_gateway_hears_the_steps_that_the_old_one_has_not_stored(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.acknowledge(await stream.hear("event"))
    await first_step(stream)
    await stream.said.put(grpc.StatusCode.UNAVAILABLE)

    stream = await bench.gateway.stream()
    await stream.welcome(heartbeat=0.2)
    again = await stream.hear("progress")
    stored = [pb.StoredProgress(lease=again.lease, step=again.step)]
    beat = await stream.hear("heartbeat")
    await stream.say(heartbeat_ack=pb.HeartbeatAck(seq=beat.seq, extended=[again.lease], stored=stored))
    await stream.said.put(grpc.StatusCode.UNAVAILABLE)
    stream = await bench.gateway.stream()
    await stream.welcome()
    last = await stream.hear("progress")

    assert [metrics.step for metrics in again.metrics] == [1]
    assert (last.step, list(last.metrics)) == (again.step, [])


async def test_abort_in_welcome_ends_the_attempt(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("event")

    await stream.say(reconnect=pb.Reconnect(reason="test"))
    stream = await bench.gateway.stream()
    await stream.welcome(action=pb.HELD_ACTION_ABORT)
    await stream.say(assign=bench.assign("quick", "tune_2"))
    await sign_put(bench, stream)
    finished = await stream.hear("finished")

    assert finished.lease.tune_id == "tune_2"


async def test_a_stale_report_ends_the_attempt(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    event = await stream.hear("event")

    await stream.acknowledge(event, pb.REPORT_OUTCOME_STALE)

    assert not (await next_idle_beat(stream, bench)).held


async def test_nothing_is_published_past_the_lease_until_it_is_extended(bench: Bench) -> None:
    supervisor = bench.start()
    stream = await bench.gateway.stream()
    await stream.welcome(lease=0.5, heartbeat=5.0)
    stream.beats = False
    assign = bench.assign("waits")
    assign.lease_duration.FromMilliseconds(1)  # has ended by the time the first report is there

    await stream.say(assign=assign)
    await stream.hear("accepted")
    lease = assign.lease
    supervisor.workbench.beat_soon()
    beats = 0
    while True:  # beats go on; not one report among them
        message = await asyncio.wait_for(stream.heard.get(), 20)
        assert message.HasField("heartbeat")
        beat = message.heartbeat
        beats += 1
        if supervisor.workbench.spool.waiting(supervisor.workbench.leases.all()[0]):
            break
        supervisor.workbench.beat_soon()
    await stream.say(heartbeat_ack=pb.HeartbeatAck(seq=beat.seq, extended=[lease]))

    assert (await stream.hear("event")).lease == lease


async def test_three_missed_acks_make_it_reconnect(bench: Bench) -> None:
    """Half-open TCP: the gateway seems to be there, and says no more."""
    bench.start()
    stream = await bench.gateway.stream()
    await stream.welcome(heartbeat=0.05)  # and says no more

    again = await bench.gateway.stream()

    assert (await again.hear("hello")).trainer_id == "trainer-1"


async def test_reconnect_goes_to_another_gateway(bench: Bench) -> None:
    other = FakeGateway()
    await other.start()
    try:
        bench.start(gateways=f"127.0.0.1:{bench.gateway.port},127.0.0.1:{other.port}")
        getting = {asyncio.create_task(one.stream()): one for one in (bench.gateway, other)}
        done, _ = await asyncio.wait(getting, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop()
        await first.result().welcome()

        await first.result().say(reconnect=pb.Reconnect(reason="going away"))

        second = next(task for task in getting if task is not first)
        assert (await (await second).hear("hello")).trainer_id == "trainer-1"
    finally:
        await other.stop()


async def test_an_upload_waits_for_an_object_store_that_is_away(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    await stream.hear("event")
    bench.objects.away = True

    await sign_put(bench, stream)
    again = await stream.hear("url_request")
    bench.objects.away = False
    stream.heard.put_nowait(pb.TrainerMessage(url_request=again))
    await sign_put(bench, stream)

    await stream.hear("finished")
    assert bench.objects.objects["/incoming/tune_1/1/lora.safetensors"] == b"lora of tune_1"


async def test_a_result_whose_file_is_gone_is_reported_all_the_same(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    request: pb.UrlRequest = await stream.hear("url_request")
    [spooled] = (bench.folder / "data" / "spool").glob("*/*.object")
    spooled.unlink()

    await stream.say(urls=signed(bench, request))
    finished = await asyncio.wait_for(stream.hear("finished"), 20)

    assert finished.lease == request.lease  # the gateway finds nothing uploaded, and lets another attempt follow
    assert bench.objects.objects.keys() == {"/pictures/asset_1"}


async def test_a_result_whose_url_is_none_is_reported_all_the_same(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    request: pb.UrlRequest = await stream.hear("url_request")

    urls = [pb.SignedUrl(object=wanted, url="http://\x00") for wanted in request.objects]
    await stream.say(urls=pb.Urls(request_id=request.request_id, urls=urls))
    finished = await asyncio.wait_for(stream.hear("finished"), 20)

    assert finished.lease == request.lease
