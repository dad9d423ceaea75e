"""`tunesmith-trainer`: reads the settings, runs the supervisor, translates how it ended into an exit code.

0  asked to end, and everything was given back
2  a setting is wrong or cannot be followed, or the gateway refuses the token
3  DUPLICATE_TRAINER: another process of this trainer_id has taken over
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from importlib.metadata import version

import structlog

from trainer.supervisor import config
from trainer.supervisor.config import ConfigError, Settings
from trainer.supervisor.connection import DuplicateTrainer, Refused
from trainer.supervisor.supervisor import CannotStart, Supervisor

log = structlog.get_logger()


def main() -> None:
    """The command."""
    _read_arguments()
    _configure_log()
    try:
        settings = config.read()
    except ConfigError as exc:
        for line in str(exc).splitlines():
            print(f"tunesmith-trainer: {line}", file=sys.stderr)
        sys.exit(2)
    for each in config.misspelt().items():
        log.warning(config.unknown(*each))
    sys.exit(asyncio.run(_run(settings)))


def _read_arguments() -> None:
    """There are none but --help and --version, which end the process: all settings are in the environment."""
    names = "\n".join(f"  {config.PREFIX}{name.upper()}" for name in Settings.model_fields)
    parser = argparse.ArgumentParser(
        prog="tunesmith-trainer",
        description="Runs one trainer until SIGTERM or SIGINT.",
        epilog=f"Its settings are read from the environment, and docs/deploying.md explains them:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("tunesmith"))
    parser.parse_args()


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(Supervisor(settings).run(stop))

    def asked_to_end() -> None:
        if stop.is_set():
            serving.cancel()  # asked twice: at once
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end)
    try:
        await serving
    except asyncio.CancelledError:
        return 1
    except DuplicateTrainer as exc:
        log.error("DUPLICATE_TRAINER: another process of this trainer_id has taken over", details=str(exc))
        return 3
    except (Refused, CannotStart) as exc:
        log.error("The trainer cannot work", why=str(exc))
        return 2
    return 0


def _configure_log() -> None:
    """To standard error, one line an event; tracebacks plain, for the rich ones print locals and so secrets."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
