"""The supervisor as a gateway sees it: a real stream, a real child process, real files. What it survives is in
test_survival.py, how it starts and leaves in test_start_and_end.py.
"""

import asyncio

import httpx
import pytest
from structlog.testing import capture_logs

from tests.trainer.supervisor.conftest import Bench, emptied, first_step, next_idle_beat, sign_put, welcomed
from trainer.bases import tiny_shapes
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


async def test_hello_says_what_the_engine_can_do(bench: Bench) -> None:
    bench.start()
    stream = await bench.gateway.stream()
    hello = await stream.welcome()

    assert hello.trainer_id == "trainer-1"
    assert hello.engines == ["image/stable-diffusion-v1-5"]
    assert hello.slots == 1
    assert hello.device_name == "cpu"
    assert not hello.held
    assert bench.gateway.metadata["authorization"] == "Bearer tt_secret"


async def test_a_tune_goes_from_assign_to_recorded(bench: Bench) -> None:
    _, stream = await welcomed(bench)

    await stream.say(assign=bench.assign())
    accepted = await stream.hear("accepted")
    verdict = await stream.hear("event")
    resolved = await stream.hear("event")
    for report in (verdict, resolved):
        await stream.acknowledge(report)
    request = await sign_put(bench, stream)
    finished = await stream.hear("finished")
    await stream.acknowledge(finished)
    beat = await next_idle_beat(stream, bench)

    assert accepted.lease == pb.Lease(tune_id="tune_1", epoch=1)
    assert verdict.verdict.file_id == "asset_1"
    assert verdict.verdict.accepted
    assert resolved.resolved_recipe.json == '{"seed":7}'
    assert [verdict.report_seq, resolved.report_seq, finished.report_seq] == [1, 2, 3]
    assert request.objects == [pb.ObjectName(method=pb.METHOD_PUT, name="lora.safetensors")]
    assert bench.objects.objects["/incoming/tune_1/1/lora.safetensors"] == b"lora of tune_1"
    assert (finished.step, finished.pictures) == (3, 1)
    assert not beat.held
    await emptied(bench.folder / "data" / "spool")
    await emptied(bench.folder / "data" / "work")


async def test_a_tune_is_logged_by_the_trace_of_its_request(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    traced, untraced = bench.assign(), bench.assign(tune_id="tune_2")
    traced.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    with capture_logs() as lines:
        for assign in (traced, untraced):
            await stream.say(assign=assign)
            await stream.hear("accepted")
            await sign_put(bench, stream)
            await stream.acknowledge(await stream.hear("finished"))
            await next_idle_beat(stream, bench)

    taken = [line for line in lines if line["event"] == "A tune is taken"]
    assert [line.get("trace_id") for line in taken] == ["0af7651916cd43dd8448eb211c80319c", None]


async def test_progress_tells_every_step_before_the_result(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    await stream.hear("accepted")
    steps: list[int] = []

    async def answer_urls_and_collect() -> None:
        while True:
            message = await asyncio.wait_for(stream.heard.get(), 20)
            if message.HasField("heartbeat"):
                await stream.answer(message.heartbeat)
            if message.HasField("url_request"):
                stream.heard.put_nowait(message)
                await sign_put(bench, stream)
            if message.HasField("progress"):
                steps.extend(metrics.step for metrics in message.progress.metrics)
            if message.HasField("finished"):
                return

    await answer_urls_and_collect()

    assert steps == [1, 2, 3]


async def test_cancel_stops_the_tune_and_is_observed(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await first_step(stream)

    await stream.say(cancel=pb.Cancel(lease=pb.Lease(tune_id="tune_1", epoch=1)))
    observed = await stream.hear("cancel_observed")

    assert observed.step == 1


async def test_a_cancel_that_was_lost_comes_with_the_next_acknowledged_beat(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    lease = pb.Lease(tune_id="tune_1", epoch=1)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("event")
    stream.beats = False
    supervisor.workbench.beat_soon()
    beat = await stream.hear("heartbeat")

    await stream.say(heartbeat_ack=pb.HeartbeatAck(seq=beat.seq, extended=[lease], cancelled=[lease]))

    await stream.hear("cancel_observed")


async def test_a_second_assign_for_one_slot_is_rejected(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("accepted")

    await stream.say(assign=bench.assign("quick", "tune_2"))
    rejected = await stream.hear("rejected")

    assert (rejected.lease.tune_id, rejected.reason) == ("tune_2", "NO_FREE_SLOT")


async def test_an_unknown_engine_is_rejected(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    assign = bench.assign()
    assign.engine = "image/flux-dev"

    await stream.say(assign=assign)

    assert (await stream.hear("rejected")).reason == "UNKNOWN_ENGINE"


async def test_a_revoked_attempt_reports_nothing_and_frees_its_slot(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("event")

    await stream.say(revoke=pb.Revoke(lease=pb.Lease(tune_id="tune_1", epoch=1), reason="test"))
    await stream.say(assign=bench.assign("quick", "tune_2"))
    event = await stream.hear("event")
    while event.lease.tune_id == "tune_1":  # said before the Revoke came
        event = await stream.hear("event")
    await sign_put(bench, stream)
    finished = await stream.hear("finished")

    assert finished.lease.tune_id == "tune_2"
    await emptied(bench.folder / "data" / "spool", "tune_1.1")


async def test_a_wrong_picture_fails_the_attempt_with_its_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.TRIES", 1)
    _, stream = await welcomed(bench)
    assign = bench.assign()
    assign.pictures[0].sha256 = "0" * 64

    await stream.say(assign=assign)
    failed = await stream.hear("failed")

    assert (failed.reason, failed.retryable, failed.crashed) == ("DOWNLOAD_DAMAGED", True, False)


async def test_another_model_of_a_builtins_name_is_not_trained_on(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    assign = bench.assign()
    assign.checkpoint.builtin.sha256 = "0" * 64

    await stream.say(assign=assign)
    failed = await stream.hear("failed")

    assert (failed.reason, failed.retryable, failed.crashed) == ("CHECKPOINT_DIFFERS", True, False)
    assert tiny_shapes.sha256() in failed.details


async def test_an_expired_url_is_asked_for_anew(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    assign = bench.assign()
    good = assign.pictures[0].url
    assign.pictures[0].url = f"{bench.objects.url}/expired"

    await stream.say(assign=assign)
    request = await stream.hear("url_request")
    await stream.say(
        urls=pb.Urls(request_id=request.request_id, urls=[pb.SignedUrl(object=request.objects[0], url=good)])
    )

    assert request.objects == [pb.ObjectName(method=pb.METHOD_GET, name="pictures/asset_1")]
    assert (await stream.hear("event")).verdict.file_id == "asset_1"


async def test_a_message_of_a_newer_gateway_is_ignored(bench: Bench) -> None:
    _, stream = await welcomed(bench)

    await stream.say()
    await stream.say(assign=bench.assign())

    await stream.hear("accepted")


async def test_metrics_tell_steps_tunes_and_the_connection(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    await sign_put(bench, stream)
    await stream.acknowledge(await stream.hear("finished"))
    await next_idle_beat(stream, bench)

    async with httpx.AsyncClient() as client:
        text = (await client.get(supervisor.metrics_url)).text

    for line in (
        "tunesmith_trainer_steps_total 3.0",
        "tunesmith_trainer_step_seconds_count 3.0",
        "tunesmith_trainer_step_seconds_sum 1.75",  # as the engine says, whatever the speed over the last steps
        "tunesmith_trainer_engine_memory_bytes 0.0",
        "tunesmith_trainer_engine_process_memory_bytes 3000.0",
        "tunesmith_trainer_engine_process_memory_peak_bytes 4000.0",
        'tunesmith_trainer_tunes_total{outcome="finished"} 1.0',
        "tunesmith_trainer_tunes_held 0.0",
        "tunesmith_trainer_connected 1.0",
        "tunesmith_trainer_engine_ready 1.0",
        "tunesmith_trainer_base_loads_total 0.0",
    ):
        assert line in text.splitlines()
