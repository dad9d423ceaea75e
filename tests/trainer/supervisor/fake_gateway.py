"""A gateway that says what the test tells it to, over a real grpc.aio server; and an object store that is a dict."""

import asyncio
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc.aio

from tunesmith.trainer.v1 import trainer_service_pb2 as pb
from tunesmith.trainer.v1 import trainer_service_pb2_grpc


class Stream:
    """One trainer's stream, seen from the gateway. Beats are answered by themselves while `beats` is set."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[pb.TrainerMessage] = asyncio.Queue()
        self.said: asyncio.Queue[pb.GatewayMessage | grpc.StatusCode] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.beats = True

    async def say(self, **arm: Any) -> None:
        await self.said.put(pb.GatewayMessage(**arm))

    async def hear(self, arm: str) -> Any:
        """The next message of that arm; what comes before it is skipped, beats are answered."""
        while True:
            message = await asyncio.wait_for(self.heard.get(), 20)
            if message.HasField("heartbeat") and self.beats:
                await self.answer(message.heartbeat)
            if message.WhichOneof("message") == arm:
                return getattr(message, arm)

    async def answer(self, beat: pb.Heartbeat) -> None:
        leases = [held.lease for held in beat.held]
        await self.say(heartbeat_ack=pb.HeartbeatAck(seq=beat.seq, extended=leases))

    async def welcome(
        self, lease: float = 45.0, heartbeat: float = 5.0, action: pb.HeldAction.ValueType = pb.HELD_ACTION_CONTINUE
    ) -> pb.Hello:
        hello: pb.Hello = await self.hear("hello")
        welcome = pb.Welcome(held=[pb.HeldVerdict(lease=held.lease, action=action) for held in hello.held])
        welcome.lease.FromNanoseconds(int(lease * 1e9))
        welcome.heartbeat.FromNanoseconds(int(heartbeat * 1e9))
        await self.say(welcome=welcome)
        return hello

    async def acknowledge(self, report: Any, outcome: pb.ReportOutcome.ValueType = pb.REPORT_OUTCOME_RECORDED) -> None:
        await self.say(report_ack=pb.ReportAck(lease=report.lease, report_seq=report.report_seq, outcome=outcome))


class FakeGateway(trainer_service_pb2_grpc.TrainerServiceServicer):
    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.metadata: dict[str, str] = {}
        self.common_names: list[bytes] = []

    async def start(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(self, self.server)
        if credentials is None:
            self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            self.port = self.server.add_secure_port(f"localhost:{port}", credentials)
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)

    async def stream(self) -> Stream:
        return await asyncio.wait_for(self.streams.get(), 30)

    # A coroutine that reads and writes through the context; the stubs know the generator form only.
    async def Connect(self, requests: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        self.common_names = list(context.auth_context().get("x509_common_name", ()))
        stream = Stream()
        self.streams.put_nowait(stream)

        async def read() -> None:
            async for message in requests:
                await stream.heard.put(message)
            await stream.said.put(grpc.StatusCode.OK)

        reading = asyncio.create_task(read())
        try:
            while isinstance(message := await stream.said.get(), pb.GatewayMessage):
                await context.write(message)
            if message is not grpc.StatusCode.OK:
                await context.abort(message, "as the test wanted")
        finally:
            reading.cancel()
            stream.ended.set()


class FakeObjects:
    """Objects by path; `away` makes it answer 503."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False
        self.asked: list[str] = []
        store = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                store.asked.append(self.path)
                body = store.objects.get(self.path)
                self._answer(503 if store.away else 404 if body is None else 200, body or b"")

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not store.away:
                    store.objects[self.path] = body
                self._answer(503 if store.away else 200, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def put(self, path: str, body: bytes) -> pb.Picture:
        """An object, as a picture of an Assign."""
        self.objects[path] = body
        return pb.Picture(
            file_id=path.rsplit("/", 1)[-1],
            sha256=hashlib.sha256(body).hexdigest(),
            size_bytes=len(body),
            url=self.url + path,
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
