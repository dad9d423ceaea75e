"""The supervisor as a gateway sees it: a real stream, a real child process, real files."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.trainer.supervisor.conftest import Bench
from tests.trainer.supervisor.fake_gateway import FakeGateway, Stream
from trainer.bases import tiny_shapes
from trainer.supervisor.connection import DuplicateTrainer, Refused
from trainer.supervisor.supervisor import CannotStart, Supervisor
from tunesmith.trainer.v1 import trainer_service_pb2 as pb


async def welcomed(bench: Bench, **settings: Any) -> tuple[Supervisor, Stream]:
    supervisor = bench.start(**settings)
    stream = await bench.gateway.stream()
    await stream.welcome()
    return supervisor, stream


async def sign_put(bench: Bench, stream: Stream) -> pb.UrlRequest:
    """Answers the next UrlRequest with URLs under the attempt's own prefix."""
    request: pb.UrlRequest = await stream.hear("url_request")
    await stream.say(urls=signed(bench, request))
    return request


def signed(bench: Bench, request: pb.UrlRequest) -> pb.Urls:
    lease = request.lease
    urls = [
        pb.SignedUrl(object=wanted, url=f"{bench.objects.url}/incoming/{lease.tune_id}/{lease.epoch}/{wanted.name}")
        for wanted in request.objects
    ]
    return pb.Urls(request_id=request.request_id, urls=urls)


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
    assert not list((bench.folder / "data" / "spool").iterdir())
    assert not list((bench.folder / "data" / "work").iterdir())


async def next_idle_beat(stream: Stream, bench: Bench) -> pb.Heartbeat:
    """The first beat that names no attempt; the supervisor is asked to beat at once."""
    supervisor = next(iter(bench.running))
    while True:
        supervisor.workbench.beat_due.set()
        beat: pb.Heartbeat = await stream.hear("heartbeat")
        if not beat.held:
            return beat


async def test_progress_tells_every_step_before_the_result(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign())
    await stream.hear("accepted")
    steps: list[int] = []

    async def answer_urls_and_collect() -> None:
        while True:
            message = await asyncio.wait_for(stream.heard.get(), 20)
            if message.HasField("url_request"):
                stream.heard.put_nowait(message)
                await sign_put(bench, stream)
            if message.HasField("progress"):
                steps.extend(metrics.step for metrics in message.progress.metrics)
            if message.HasField("finished"):
                return

    await answer_urls_and_collect()

    assert steps == [1, 2, 3]


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
    monkeypatch.setattr("trainer.supervisor.child.PHASE_DEADLINES", {"training": 0.3})
    _, stream = await welcomed(bench, step_deadline=0.3)

    await stream.say(assign=bench.assign("hangs"))
    failed = await stream.hear("failed")

    assert (failed.reason, failed.crashed, failed.retryable) == ("ENGINE_HUNG", True, True)


async def test_a_fault_of_the_tune_leaves_the_engine_alive(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    pid = supervisor.engine.pid

    await stream.say(assign=bench.assign("breaks"))
    failed = await stream.hear("failed")

    assert (failed.reason, failed.crashed, failed.retryable) == ("NAN_LOSS", False, False)
    assert supervisor.engine.pid == pid


async def test_cancel_stops_the_tune_and_is_observed(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("progress")

    await stream.say(cancel=pb.Cancel(lease=pb.Lease(tune_id="tune_1", epoch=1)))
    observed = await stream.hear("cancel_observed")

    assert observed.step == 1


async def test_a_cancel_that_was_lost_comes_with_the_next_acknowledged_beat(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    lease = pb.Lease(tune_id="tune_1", epoch=1)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("event")
    stream.beats = False
    supervisor.workbench.beat_due.set()
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
    assert not (bench.folder / "data" / "spool" / "tune_1.1").exists()


async def test_training_goes_on_while_the_gateway_is_away(bench: Bench) -> None:
    _, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    event = await stream.hear("event")
    await stream.acknowledge(event)
    await stream.hear("progress")

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
    await stream.hear("progress")
    pid = supervisor.engine.pid
    assert pid is not None

    await bench.kill(supervisor)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


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
    supervisor.workbench.beat_due.set()
    beats = 0
    while True:  # beats go on; not one report among them
        message = await asyncio.wait_for(stream.heard.get(), 20)
        assert message.HasField("heartbeat")
        beat = message.heartbeat
        beats += 1
        if supervisor.workbench.spool.waiting(supervisor.workbench.leases.all()[0]):
            break
        supervisor.workbench.beat_due.set()
    await stream.say(heartbeat_ack=pb.HeartbeatAck(seq=beat.seq, extended=[lease]))

    assert (await stream.hear("event")).lease == lease


async def test_three_missed_acks_make_it_reconnect(bench: Bench) -> None:
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


async def test_sigterm_gives_the_tune_back(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    await stream.say(assign=bench.assign("waits"))
    await stream.hear("progress")

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


async def test_a_wrong_picture_fails_the_attempt_with_its_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.supervisor.downloads.TRIES", 1)
    _, stream = await welcomed(bench)
    assign = bench.assign()
    assign.pictures[0].sha256 = "0" * 64

    await stream.say(assign=assign)
    failed = await stream.hear("failed")

    assert (failed.reason, failed.retryable, failed.crashed) == ("DOWNLOAD_FAILED", True, False)


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


async def test_an_engine_that_dies_idle_comes_back_and_the_gateway_hears_of_it(bench: Bench) -> None:
    supervisor, stream = await welcomed(bench)
    assert (await stream.hear("heartbeat")).free_slots == 1
    assert supervisor.engine.pid is not None

    os.kill(supervisor.engine.pid, signal.SIGKILL)

    assert (await stream.hear("heartbeat")).free_slots == 0
    assert (await stream.hear("heartbeat")).free_slots == 1


async def test_a_taken_metrics_port_is_named(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        second = bench.start(metrics=f"127.0.0.1:{taken.getsockname()[1]}")

        with pytest.raises(CannotStart, match="TUNESMITH_METRICS"):
            await bench.running.pop(second)


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


async def test_the_ready_file_says_where_metrics_are(bench: Bench, tmp_path: Path) -> None:
    supervisor, _ = await welcomed(bench, ready_file=tmp_path / "ready.json")

    await asyncio.wait_for(supervisor.ready.wait(), 20)
    ready = await asyncio.to_thread((tmp_path / "ready.json").read_text)

    assert json.loads(ready) == {"metrics": supervisor.metrics_url}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed here")
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

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("localhost", "trainer-1"):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", *signed, "-extfile", "names", "-out", f"{name}.pem")
    pair = (folder / "localhost.key").read_bytes(), (folder / "localhost.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), True)
