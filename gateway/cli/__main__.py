"""The command `tunesmith`: reads the arguments and calls one thing. Knows nothing of what that thing does."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from gateway.cli.keys import key, trainer_token
from gateway.cli.numbers import WHOLE
from gateway.cli.paths import GIVEN
from gateway.cli.tenants import tenant
from gateway.cli.trainers import trainer
from gateway.cli.up import Up, UpError
from gateway.cli.webhooks import webhook

app = cyclopts.App(
    name="tunesmith", help="Self-hosted LoRA tuning of image-diffusion models.", version=version("tunesmith")
)
app.command(key)
app.command(trainer_token)
app.command(tenant)
app.command(trainer)
app.command(webhook)


@app.command
def up(
    *,
    data: Annotated[Path, GIVEN] = Path("tunesmith-data"),
    http: str = "127.0.0.1:8080",
    grpc: str = "127.0.0.1:50051",
    metrics: str = "127.0.0.1:9090",
    trainers: Annotated[int, WHOLE] = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    ready_file: Annotated[Path | None, GIVEN] = None,
) -> int:
    """Run the whole service on this machine: one gateway on SQLite, and trainers.

    Restarts what dies. Ctrl-C or SIGTERM ends it; called again with the same folder it goes on where it ended.

    Parameters
    ----------
    data
        Folder that holds everything: the database, pictures, LoRAs, keys. Made if it is not there.
    http
        HOST:PORT of the HTTP API. Port 0 picks a free one.
    grpc
        HOST:PORT of the gRPC API.
    metrics
        HOST:PORT of the gateway's Prometheus metrics. Each trainer serves its own on a free port.
    trainers
        How many trainer processes, 0 to 64.
    device
        What they train on. auto takes the GPU where there is one.
    ready_file
        Written as JSON once all are ready, and again whenever a process was restarted.
    """
    try:
        service = Up(
            data=data, http=http, grpc=grpc, metrics=metrics, trainers=trainers, device=device, ready_file=ready_file
        )
        return asyncio.run(service.run())
    except UpError as error:
        for fault in str(error).splitlines():
            print(f"tunesmith up: {fault}", file=sys.stderr)
        return 1


def main() -> None:
    """Entry point of the distribution."""
    sys.exit(app(result_action="return_int_as_exit_code_else_zero"))


if __name__ == "__main__":
    main()
