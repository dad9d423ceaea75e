"""The gateway's process: opens what it needs, serves, and closes it again. Called by `__main__`; the only place that
wires things together.

    callers --HTTP--> uvicorn, the shim --loopback--+
    callers, trainers --gRPC--> the gRPC server ----+--> interceptors --> services, dispatcher --> store
    Prometheus --HTTP--> a thread of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import grpc
import structlog
import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway import catalogue, interceptors
from gateway.assets import AssetService
from gateway.certificates import certificates
from gateway.config import Address, ConfigError, Faults, Settings
from gateway.desk import StreamSettings
from gateway.dispatch import Dispatcher
from gateway.fetches import Fetches
from gateway.http import app, openapi, pages
from gateway.http.admission import Admission
from gateway.http.listener import Listener
from gateway.http.loopback import Loopback
from gateway.http.room import Room
from gateway.hub import Hub
from gateway.judges import Judges
from gateway.late_requests import InTime
from gateway.metrics import Metrics, read_snapshot
from gateway.outbound import Outbound
from gateway.pictures import Limits
from gateway.quotas import Quotas
from gateway.retention import Retention, Terms
from gateway.stream_metrics import StreamMetrics
from gateway.sweeper import Sweeper
from gateway.trainers import TrainerServicer
from gateway.tunes import TuneService
from gateway.uploads import Uploads
from gateway.watch import Watch
from gateway.webhooks.delivery import Webhooks
from gateway.webhooks.metrics import WebhookMetrics
from store import keys
from store.database import Database
from store.errors import ObjectsAway
from store.objects import Objects
from store.objects.local import LocalObjects
from store.objects.s3 import S3Objects, location
from store.objects.signing import Signer
from tunesmith.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from tunesmith.v1 import asset_service_pb2, asset_service_pb2_grpc, tune_service_pb2, tune_service_pb2_grpc

#: Without min_recv_ping_interval a trainer that pings every 20 s is told to go away after a minute: its default is five
#: minutes.
GRPC_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # What one request may cost; http/requests.py has the same for HTTP. What trainers send is far smaller.
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 1000),  # of one connection; its further calls wait
    ("grpc.server_handshake_timeout_ms", 15_000),
    ("grpc.so_reuseport", 0),  # with it, a second gateway on the same port would take every other call in silence
)
CALLER_SERVICES = (
    tune_service_pb2.DESCRIPTOR.services_by_name["TuneService"],
    asset_service_pb2.DESCRIPTOR.services_by_name["AssetService"],
)
SERVICES = (*CALLER_SERVICES, trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"])

log = structlog.get_logger(__name__)


class Server:
    """One gateway: startup, serve, shutdown."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics(version("tunesmith"))
        self._stopping = asyncio.Event()  # set by stop, read by serve and health
        self._opened = contextlib.AsyncExitStack()  # what shutdown closes, last opened first

    async def startup(self) -> None:
        """Opens everything and binds every address; nothing is answered yet."""
        settings, faults = self._settings, Faults()
        with faults:
            self._checkpoints = catalogue.gather(settings.catalogue)
        with faults:
            self._grpc_tls = certificates("TLS", settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        with faults:
            self._http_tls = certificates("HTTP_TLS", settings.http_tls_certificate, settings.http_tls_key)
        with faults:
            self._http_socket = self._bind(settings.http)
        for name, address in (("grpc", settings.grpc), ("metrics", settings.metrics)):
            with faults:
                check_free(name, address)
        faults.tell()
        self._http_address = Address(settings.http.host, self._http_socket.getsockname()[1])
        self._signer = self._make_signer()
        self._objects = await self._open_objects()

        self._database = await self._open_database()
        self._database.tell_ended = self._metrics.ended
        await catalogue.publish(self._database, self._checkpoints)
        self._metrics.admit(checkpoint.engine for checkpoint in self._checkpoints)

        picture_limits = Limits(size_bytes=settings.max_picture_bytes, pixels=settings.max_picture_pixels)
        self._judges = Judges(picture_limits, workers=settings.judges)
        self._opened.push_async_callback(self._judges.close)
        self._watch = Watch(self._database)
        self._dispatcher = Dispatcher(
            self._database,
            self._objects,
            StreamSettings(
                gateway_id=settings.gateway_id,
                lease_seconds=settings.lease_seconds,
                heartbeat_seconds=settings.heartbeat_seconds,
            ),
            StreamMetrics(self._metrics.registry),
        )

        self._uploads = Uploads(
            self._database,
            self._objects,
            self._judges,
            self._metrics,
            max_picture_bytes=settings.max_picture_bytes,
            max_weights_bytes=settings.max_weights_bytes,
        )
        self._opened.push_async_callback(self._uploads.close)
        self._outbound = Outbound(allow=settings.outbound_allow, deny=settings.outbound_deny)
        self._opened.push_async_callback(self._outbound.aclose)
        self._fetches = self._build_fetches()
        self._sweeper = Sweeper(
            self._database,
            self._objects,
            leftover_seconds=settings.leftover_seconds,
            upload_seconds=settings.upload_seconds,
            period_seconds=settings.sweep_seconds,
        )
        terms = Terms(
            settings.metrics_days, settings.deleted_asset_days, settings.ended_key_days, settings.webhook_days
        )
        self._retention = Retention(self._database, terms, period_seconds=settings.sweep_seconds)

        self._webhooks = Webhooks(self._database, self._outbound, WebhookMetrics(self._metrics.registry))

        chain = interceptors.chain(
            authenticate=partial(keys.authenticate, self._database),
            authenticate_trainer=partial(keys.authenticate_trainer, self._database),
            record=self._metrics.rpc,
            quotas=Quotas(settings.requests_per_second, settings.streams_per_tenant, refused=self._metrics.limited),
        )
        self._grpc = grpc.aio.server(interceptors=[InTime(), *chain], options=GRPC_OPTIONS)
        self._loopback = Loopback(chain)
        self._add_services()
        self._grpc_address = Address(settings.grpc.host, self._add_port())
        self._http = self._build_http()
        scrapes = self._metrics.serve(settings.metrics)
        self._opened.callback(scrapes.close)
        self._metrics_address = Address(settings.metrics.host, scrapes.port)

    async def serve(self) -> None:
        """Answers until stop is called, then until the calls that are open have ended or the grace time is over."""
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._watch.run(), name="watch"),
                tasks.create_task(self._dispatcher.run(), name="dispatch"),
                tasks.create_task(self._sweeper.run(), name="sweep"),
                tasks.create_task(self._retention.run(), name="retention"),
                tasks.create_task(self._webhooks.run(), name="webhooks"),
                tasks.create_task(self._metrics.follow(partial(read_snapshot, self._database)), name="metrics"),
            ]
            if self._fetches is not None:
                background.append(tasks.create_task(self._fetches.run(), name="fetches"))
            for service in SERVICES:
                await self._health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
            await self._grpc.start()
            http = tasks.create_task(self._http.serve(sockets=[self._http_socket]), name="http")
            self._say_ready()

            await self._stopping.wait()
            await self._drain()
            await http
            for task in background:
                task.cancel()

    def stop(self) -> None:
        """Asks serve to end. May be called from a signal handler of the loop, and more than once."""
        self._stopping.set()

    async def shutdown(self) -> None:
        """Closes what startup has opened, also where startup has failed half-way.

        Waits for the scrape that is being answered, the pictures that are being judged, and the transactions under way.
        """
        await self._opened.aclose()

    async def _drain(self) -> None:
        """Lets callers and trainers go."""
        grace = self._settings.grace_seconds
        log.info(f"The gateway ends; open calls have {grace:g} s", action="gateway_stopping")

        # Load balancers see NOT_SERVING and send nothing more. Nothing to wait for.
        await self._health.enter_graceful_shutdown()

        # Watchers end with UNAVAILABLE and call another gateway. They are among the calls waited for below.
        self._watch.close()

        # Trainers are told to reconnect elsewhere. Waits until their streams have ended, at most the grace time.
        await self._dispatcher.shutdown(grace)

        # Waits for the calls that are open, at most the grace time; then they are cancelled. HTTP takes no more
        # connections meanwhile, and does the same with its requests: serve waits for that.
        self._http.should_exit = True

        # The same for webhooks that are being sent, so that what was sent is also recorded, and not sent again.
        await asyncio.gather(self._grpc.stop(grace), self._webhooks.close(grace))

    def _bind(self, address: Address) -> socket.socket:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            bound = socket.create_server((address.host, address.port), family=family, backlog=2048)
        except OSError as exc:
            raise ConfigError(f"TUNESMITH_HTTP={address}: {exc.strerror}") from exc
        self._opened.callback(bound.close)
        return bound

    async def _open_database(self) -> Database:
        settings = self._settings
        try:
            database = await Database.open(
                settings.database_url.get_secret_value(), pool_size=settings.database_pool_size
            )
            self._opened.push_async_callback(database.close)
            await database.migrate()
        except ValueError as exc:
            raise ConfigError(f"TUNESMITH_DATABASE_URL=(not shown): {exc}") from exc
        return database

    def _make_signer(self) -> Signer:
        public_url = self._settings.public_url
        if public_url is None:
            public_url = self._http_url()
            log.info(f"TUNESMITH_PUBLIC_URL is not set: signed URLs say {public_url}", action="public_url_guessed")
        return Signer(public_url, self._settings.signing_secret.get_secret_value().encode())

    async def _open_objects(self) -> Objects:
        url = self._settings.objects_url.get_secret_value()
        try:
            if urlsplit(url).scheme == "file":
                return LocalObjects(Path(unquote(urlsplit(url).path)), self._signer)
            bucket = S3Objects(*location(url), self._signer)
            await bucket.check()
        except (OSError, ValueError) as exc:
            raise ConfigError(f"TUNESMITH_OBJECTS_URL=(not shown): {exc}") from exc
        except ObjectsAway as exc:  # it may come back; until then callers are told to try again
            log.warning(str(exc), action="objects_away")
        return bucket

    def _build_fetches(self) -> Fetches | None:
        """Who fetches what callers name by URL; None where that is off."""
        settings = self._settings
        if not settings.fetch:
            return None
        return Fetches(
            self._database,
            self._objects,
            self._uploads,
            self._outbound,
            Hub(self._outbound, settings.hub_url) if settings.hub_url else None,
            self._metrics,
            tune_lease=settings.lease_seconds,
        )

    def _add_services(self) -> None:
        """Both servers get the callers' services; trainers, health checks and reflection come over gRPC alone."""
        tune_service = TuneService(self._database, self._watch)
        asset_service = AssetService(self._database, self._objects, self._uploads, self._fetches)
        for server in (self._grpc, cast(Any, self._loopback)):  # what the generated code calls of a server, it has
            tune_service_pb2_grpc.add_TuneServiceServicer_to_server(tune_service, server)
            asset_service_pb2_grpc.add_AssetServiceServicer_to_server(asset_service, server)
        trainer_servicer = TrainerServicer(self._dispatcher, interceptors.trainer_id)
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(trainer_servicer, self._grpc)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = [service.full_name for service in SERVICES]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._grpc)

    def _add_port(self) -> int:
        """Binds the gRPC address, with TLS where it is configured."""
        settings = self._settings
        try:
            if self._grpc_tls is None:
                return int(self._grpc.add_insecure_port(str(settings.grpc)))
            return int(self._grpc.add_secure_port(str(settings.grpc), self._grpc_tls.for_grpc()))
        except RuntimeError as exc:
            raise ConfigError(f"TUNESMITH_GRPC={settings.grpc}: cannot listen there") from exc

    def _build_http(self) -> uvicorn.Server:
        """The HTTP server over the shim."""
        served = isinstance(self._objects, LocalObjects)
        described = openapi.document(CALLER_SERVICES, version("tunesmith"), serves_objects=served)
        shim = app.build(
            self._loopback,
            CALLER_SERVICES,
            objects=(self._objects, self._signer),
            room=Room(self._settings.upload_memory_bytes, refused=partial(self._metrics.limited, "uploads")),
            check_put=self._uploads.check_put,
            extra_routes=[openapi.route(described), *pages.routes()],
            health=self._say_health,
            record=self._metrics.http,
        )
        config = uvicorn.Config(
            shim,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            forwarded_allow_ips=self._settings.trusted_proxies,
            timeout_graceful_shutdown=max(round(self._settings.grace_seconds), 1),
        )
        tls = None if self._http_tls is None else self._http_tls.for_http()
        return Listener(config, Admission(self._settings.trusted_proxies), tls)

    def _http_url(self) -> str:
        return f"{'http' if self._http_tls is None else 'https'}://{reachable(self._http_address)}"

    async def _say_health(self) -> dict[str, Any]:
        """For GET /health. The database is not asked: while it is away, it is away for every gateway."""
        status = "stopping" if self._stopping.is_set() else "ok"
        return {"status": status, "version": version("tunesmith"), "gateway_id": self._settings.gateway_id}

    def _say_ready(self) -> None:
        """The gRPC server has started, and connections to the other two wait in their backlogs."""
        addresses = {
            "http": self._http_url(),
            "grpc": reachable(self._grpc_address),
            "metrics": f"http://{reachable(self._metrics_address)}/metrics",
        }
        if self._settings.ready_file is not None:
            write_atomically(self._settings.ready_file, json.dumps(addresses))
        log.info(f"The gateway serves at {addresses['http']}", action="gateway_ready", **addresses)


def check_free(name: str, address: Address) -> None:
    """Tells beside other faults, and before the database is touched, that nobody can listen there. Who will, binds it
    later: gRPC by itself, and by then it would be told alone.

    Raises:
        ConfigError: It is taken, or is not this machine's.
    """
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((address.host, address.port), family=family).close()
    except OSError as exc:
        raise ConfigError(f"TUNESMITH_{name.upper()}={address}: {exc.strerror}") from exc


def reachable(address: Address) -> str:
    """Where this host itself reaches what is bound there."""
    wildcards = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  - compared, not bound
    return str(Address(wildcards.get(address.host, address.host), address.port))


def write_atomically(path: Path, text: str) -> None:
    """Who sees the file sees all of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
