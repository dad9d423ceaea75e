"""`tunesmith-trainer`: reads the settings, runs the supervisor, translates how it ended into an exit code.

0  asked to end, and everything was given back
2  a setting is wrong or cannot be followed, or the gateway refuses the token
3  DUPLICATE_TRAINER: another process of this trainer_id has taken over
"""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
from pydantic import ValidationError

from trainer.supervisor.config import Settings
from trainer.supervisor.connection import DuplicateTrainer, Refused
from trainer.supervisor.supervisor import CannotStart, Supervisor

log = structlog.get_logger()


def main() -> None:
    """The command."""
    _configure_log()
    try:
        settings = Settings()  # type: ignore[call-arg]  # its required fields come from the environment
    except ValidationError as exc:
        sys.exit(_wrong_settings(exc))
    sys.exit(asyncio.run(_run(settings)))


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


def _wrong_settings(exc: ValidationError) -> int:
    for error in exc.errors(include_url=False, include_input=False):
        key = f"TUNESMITH_{str(error['loc'][0]).upper()}: " if error["loc"] else ""
        print(f"tunesmith-trainer: {key}{error['msg'].removeprefix('Value error, ')}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
