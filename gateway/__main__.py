"""Entry point of `tunesmith-gateway`: reads the settings, sets up the log, runs the server until SIGTERM or SIGINT.

Exit codes: 0 ended as asked, 1 the database does not answer, which a restart may mend, 2 a setting is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from importlib.metadata import version

import structlog
import uvloop

from gateway import config
from gateway.config import ConfigError, Settings
from gateway.server import Server
from store import failpoints
from store.errors import DatabaseAway

log = structlog.get_logger(__name__)


def main() -> None:
    """Runs a gateway."""
    read_arguments()
    try:
        settings = config.read()
        set_up_log(settings)
        arm_failpoints()
        open_more_files()
        uvloop.run(run(settings))
    except (ConfigError, DatabaseAway) as exc:
        print(f"tunesmith-gateway: {exc}", file=sys.stderr)
        sys.exit(2 if isinstance(exc, ConfigError) else 1)


def read_arguments() -> None:
    """There are none but --help and --version, which end the process: all settings are in the environment."""
    names = "\n".join(f"  {config.PREFIX}{name.upper()}" for name in Settings.model_fields)
    parser = argparse.ArgumentParser(
        prog="tunesmith-gateway",
        description="Runs one gateway until SIGTERM or SIGINT.",
        epilog=f"Its settings are read from the environment, and docs/deploying.md explains them:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("tunesmith"))
    parser.parse_args()


def arm_failpoints() -> None:
    """For tests that let a gateway fail on purpose, and for nothing else: so it is no setting."""
    try:
        failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    except ValueError as exc:
        raise ConfigError(f"{failpoints.VARIABLE}: {exc}") from exc


def open_more_files() -> None:
    """Each connection is a file. The soft limit is low for the sake of programs that use select, and we do not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(settings: Settings) -> None:
    """Starts, serves, shuts down."""
    for wrong, right in config.misspelt().items():
        log.warning(config.unknown(wrong, right), action="setting_unknown")
    server = Server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        await server.startup()
        await server.serve()
    finally:
        await server.shutdown()
    log.info("The gateway has ended", action="gateway_ended")


def set_up_log(settings: Settings) -> None:
    """Each line is a sentence for people, with `action` and ids for machines, on standard error.

    The libraries' own lines (uvicorn, asyncio, sqlalchemy) take the same way.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without the frames' locals: they hold keys and signed URLs.
    if settings.log_format == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(sort_keys=True),
        ]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)


if __name__ == "__main__":
    main()
