"""`scripts/demo`: teaches the base that ships something it does not know, and shows what came of it.

    starts the service ─ uploads pictures ─ asks for a tune ─ watches it ─ fetches the LoRA ─ ends the service
                                                                                  │
               before-after.png, loss.png  <─  stock diffusers, with and without <┘

`run` is the whole of it, in order. It imports nothing of the project: what it does, any HTTP client can do.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from PIL import Image
from PIL.Image import Image as Picture

from examples.demo import pages
from examples.demo.client import Client, connect
from examples.demo.display import Display
from examples.demo.failure import DemoFailed
from examples.demo.lessons import LESSONS, Lesson, caption
from examples.demo.service import Service

ROOT = Path(__file__).parents[2]
BASE = ROOT / "trainer/bases/tiny_shapes/model"  # what tunesmith:tiny-shapes is, for diffusers
SEED = 1  # any; a fixed one lets everybody see the same pictures


def main() -> int:
    """Returns the exit code: 0, 1 for a failure, 130 for Ctrl-C."""
    wanted = arguments()
    out: Path = wanted.out or Path(f"demo-{wanted.lesson.name}")
    log = out / "log.txt"
    # SIGTERM ends it as Ctrl-C does, also where a shell has started it in the background with Ctrl-C turned off.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    for name in ("TUNESMITH_THREADS", "OMP_NUM_THREADS"):
        # So small a model is as fast on one core, and several would wait for whatever else the machine is busy with.
        os.environ.setdefault(name, "1")
    try:
        prepare(out, log)
        run(wanted.lesson, wanted.steps or wanted.lesson.steps, out, log)
    except KeyboardInterrupt:
        print("\nscripts/demo: ended before its time; nothing is left running", file=sys.stderr)
        return 130
    except (DemoFailed, httpx.HTTPError, OSError) as error:
        sentence = f"the service does not answer: {error}" if isinstance(error, httpx.HTTPError) else error
        print(f"scripts/demo: {sentence}", file=sys.stderr)
        if log.exists():
            print(f"The service's log: {log}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Teaches tiny-shapes something, and shows it.")
    parser.add_argument(
        "lesson",
        metavar="|".join(LESSONS),
        nargs="?",
        type=lesson_named,
        default="crescent",
        help="what to teach; crescent, unless you say another (examples/README.md)",
    )
    parser.add_argument("--steps", type=positive, help="of the tune; what the example wants, unless you say a number")
    parser.add_argument(
        "--out", type=Path, help="folder for the pictures; ./demo-crescent and so on, unless you name one"
    )
    return parser.parse_args()


def lesson_named(name: str) -> Lesson:
    """The lesson, or a sentence that says which there are."""
    if name not in LESSONS:
        raise argparse.ArgumentTypeError(f"there is no example {name!r}; there are {', '.join(LESSONS)}")
    return LESSONS[name]


def positive(text: str) -> int:
    """A number of steps."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps; a whole number from 1 up was wanted")
    return int(text)


def prepare(out: Path, log: Path) -> None:
    """Makes the folder for the pictures, and begins the log in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    except OSError as error:
        raise DemoFailed(f"--out {out} cannot be written to: {error.strerror}") from error


def run(lesson: Lesson, steps: int, out: Path, log: Path) -> None:
    """The demo, from the service's start to the pictures."""
    display = Display()
    display.say(f"Teaching tunesmith:tiny-shapes what '{lesson.trigger}' means.")
    lora = out / f"{lesson.name}.safetensors"
    with tempfile.TemporaryDirectory(prefix="tunesmith-demo-") as scratch:
        losses = learn(display, lesson, steps, lora, Path(scratch), log)
        with display.part("diffusers", "drawing") as said:
            prompts = [*lesson.prompts, lesson.control]
            before, after = draw(prompts, lora, Path(scratch) / "drawn", log)
            said(f"drew {len(prompts)} prompts without the LoRA and with it")
    title = f"tiny-shapes learns '{lesson.trigger}' from {len(lesson.pictures())} pictures, in {steps} steps"
    taught = [opened(picture) for picture in lesson.pictures()]
    pages.grid(pages.Comparison(title, taught, prompts, before, after)).save(out / "before-after.png", optimize=True)
    pages.loss_curve(losses, f"{title}: loss by step").save(out / "loss.png", optimize=True)
    display.say(f"Done in {display.total()}. Look at")
    display.say(f"  {out / 'before-after.png'}: the same noise, before the tune and after it")
    display.say(f"  {out / 'loss.png'}: the loss, step by step")
    display.say(f"  {lora}: the LoRA, for diffusers, ComfyUI and A1111")


def learn(display: Display, lesson: Lesson, steps: int, lora: Path, scratch: Path, log: Path) -> dict[int, float]:
    """All that needs the service: pictures in, LoRA out. Returns the loss by step."""
    with ExitStack() as running:
        with display.part("service", "starting") as said:
            service = running.enter_context(Service(scratch, log))
            said(f"serves at {service.url}")
        client = Client(running.enter_context(connect(service.url, service.key)))
        with display.part("pictures", "uploading") as said:
            captions = {client.upload(picture): caption(picture) for picture in lesson.pictures()}
            said(f"{len(captions)} uploaded, each looked at by the service")
        tune_id = client.tune(f"demo-{lesson.name}", captions, lesson.trigger, steps, SEED)
        losses = watch(display, client, tune_id, steps)
        with display.part("LoRA", "fetching") as said:
            size = client.download(client.lora(tune_id), lora)
            said(f"{size / 1e6:.1f} MB by its signed URL")
    return losses


def watch(display: Display, client: Client, tune_id: str, steps: int) -> dict[int, float]:
    """Shows the tune's events as they come; returns the loss by step."""
    losses: dict[int, float] = {}
    with display.tuning(steps) as tuning:
        for event in client.watch(tune_id):
            if event["type"] == "metrics":
                for made in event["steps"]:
                    losses[made["step"]] = made["loss"]
                    tuning.move(made["step"], made["loss"], made["steps_per_second"])
            elif event["type"] in ("verdict", "warning") and event["details"]:
                display.say(f"    note: {event['details']}")
    return losses


def draw(prompts: Sequence[str], lora: Path, folder: Path, log: Path) -> tuple[list[Picture], list[Picture]]:
    """Lets stock diffusers draw each prompt without the LoRA and with it, in a process that knows nothing of us."""
    script = Path(__file__).with_name("draw.py")
    # -I: Python leaves out our folder and our environment.
    command = [
        sys.executable,
        "-I",
        str(script),
        "--base",
        str(BASE),
        "--lora",
        str(lora),
        "--out",
        str(folder),
        *prompts,
    ]
    with log.open("ab") as said:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said).returncode  # noqa: S603
    if code != 0:
        raise DemoFailed(f"stock diffusers could not draw (exit code {code}); it has said why in the log")
    before, after = (
        [opened(folder / f"{name}-{n + 1}.png") for n in range(len(prompts))] for name in ("before", "after")
    )
    return before, after


def opened(file: Path) -> Picture:
    """A picture, read whole: its folder will soon be gone."""
    with Image.open(file) as picture:
        return picture.convert("RGB")


if __name__ == "__main__":
    sys.exit(main())
