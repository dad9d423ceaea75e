"""Runs the instructions of one Dockerfile, stage by stage, and returns the image that its last stage makes.
Called by __main__; knows nothing of what the image is for."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from deploy.dockerfiles import base, dockerfile, host, pip_conf
from deploy.dockerfiles.dockerfile import DockerfileError, Instruction, Stage
from deploy.dockerfiles.room import PATH, Room, RoomError, User, overlay


@dataclass(frozen=True)
class Healthcheck:
    """HEALTHCHECK with Docker's defaults; times in seconds."""

    command: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3


@dataclass(frozen=True)
class Image:
    """What a container is started from."""

    layers: tuple[Path, ...]
    """Folders, the newest first; the last one is the base."""
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    stop_signal: str = "SIGTERM"
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


def build(name: str, text: str, context: Path, store: Path, scratch: Path, say: Callable[[str], None]) -> Image:
    """Runs a Dockerfile.

    Args:
        name: For people, in what is said.
        text: The Dockerfile.
        context: What COPY sees.
        store: Keeps bases and caches from run to run.
        scratch: Layers are made there; the caller removes it.
        say: Told each step, its seconds and its bytes.

    Raises:
        DockerfileError: The file is wrong or not understood.
        RoomError, HostError, BaseError: A step failed.
    """
    parsed = dockerfile.parse(text)
    globals_: dict[str, str] = {}
    for argument in parsed.arguments:
        globals_ |= _argument(argument, globals_)
    images: dict[str, Image] = {}
    rooms: dict[str, Room] = {}
    with contextlib.ExitStack() as stack:
        for number, stage in enumerate(parsed.stages):
            (named,) = dockerfile.words(stage.base, globals_)
            parent = images.get(named) or Image((base.make(named, store, say),), {"PATH": PATH})
            room, layer = stack.enter_context(overlay(scratch / f"{name}-{number}", parent.layers))
            image = replace(parent, layers=(layer, *parent.layers))
            steps = Steps(image, room, rooms, context, store, globals_)
            image = _run_stage(name, stage, steps, layer, say)
            for key in (str(number), stage.name):
                images[key], rooms[key] = image, room
    return image


def _run_stage(name: str, stage: Stage, steps: Steps, layer: Path, say: Callable[[str], None]) -> Image:
    before = host.size(layer)
    for instruction in stage.instructions:
        start = time.monotonic()
        try:
            steps.step(instruction)
        except (ValueError, RoomError) as error:
            raise DockerfileError(f"{instruction.line}: {instruction.name}: {error}") from error
        if instruction.name in ("RUN", "COPY"):
            after = host.size(layer)
            spent, grown = time.monotonic() - start, (after - before) / 1e6
            say(f"{name} {stage.name or 'final'}: {spent:6.1f} s {grown:+8.1f} MB  {str(instruction)[:90]}")
            before = after
    return steps.image


class Steps:
    """Runs one stage's instructions. `image` is what they have made of it so far."""

    def __init__(
        self, image: Image, room: Room, rooms: dict[str, Room], context: Path, store: Path, globals_: dict[str, str]
    ) -> None:
        self.image = image
        self._room = room
        self._rooms = rooms  # of the earlier stages, by name and number
        self._context = context
        self._store = store
        self._globals = globals_
        self._arguments: dict[str, str] = {}

    def step(self, instruction: Instruction) -> None:
        """Runs one instruction; there is a method for each that the parser lets through."""
        getattr(self, f"_{instruction.name.lower()}")(instruction)

    @property
    def _variables(self) -> dict[str, str]:
        return {**self._arguments, **self.image.environment}

    def _words(self, instruction: Instruction) -> list[str]:
        if instruction.rest.startswith("["):
            return [word for item in json.loads(instruction.rest) for word in dockerfile.words(item, self._variables)]
        return dockerfile.words(instruction.rest, self._variables)

    def _word(self, instruction: Instruction) -> str:
        (word,) = self._words(instruction)
        return word

    def _arg(self, instruction: Instruction) -> None:
        self._arguments |= _argument(instruction, self._variables, self._globals)

    def _env(self, instruction: Instruction) -> None:
        found = dict(dockerfile.pairs(instruction.rest, self._variables))
        self.image = replace(self.image, environment={**self.image.environment, **found})

    def _label(self, instruction: Instruction) -> None:
        found = dict(dockerfile.pairs(instruction.rest, self._variables))
        self.image = replace(self.image, labels={**self.image.labels, **found})

    def _workdir(self, instruction: Instruction) -> None:
        folder = str(PurePosixPath(self.image.folder) / self._word(instruction))
        self._room.inside(folder).mkdir(parents=True, exist_ok=True)
        self.image = replace(self.image, folder=folder)

    def _user(self, instruction: Instruction) -> None:
        self.image = replace(self.image, user=self._word(instruction))

    def _expose(self, instruction: Instruction) -> None:
        self.image = replace(self.image, ports=(*self.image.ports, *self._words(instruction)))

    def _volume(self, instruction: Instruction) -> None:
        self.image = replace(self.image, volumes=(*self.image.volumes, *self._words(instruction)))

    def _stopsignal(self, instruction: Instruction) -> None:
        self.image = replace(self.image, stop_signal=self._word(instruction))

    def _entrypoint(self, instruction: Instruction) -> None:
        self.image = replace(self.image, entrypoint=dockerfile.command(instruction.rest), arguments=())

    def _cmd(self, instruction: Instruction) -> None:
        self.image = replace(self.image, arguments=dockerfile.command(instruction.rest))

    def _healthcheck(self, instruction: Instruction) -> None:
        if instruction.rest.upper() == "NONE":
            self.image = replace(self.image, healthcheck=None)
            return
        kind, _, rest = instruction.rest.partition(" ")
        if kind.upper() != "CMD":
            raise ValueError("wanted CMD or NONE")
        flags = {key.replace("-", "_"): value for key, value in instruction.flags}
        retries = int(flags.pop("retries", Healthcheck.retries))
        times = {key: dockerfile.seconds(value) for key, value in flags.items()}
        self.image = replace(
            self.image, healthcheck=Healthcheck(dockerfile.command(rest.strip()), retries=retries, **times)
        )

    def _run(self, instruction: Instruction) -> None:
        user = self._room.user(self.image.user)
        with contextlib.ExitStack() as stack:
            for name in ("resolv.conf", "hosts"):
                stack.enter_context(self._room.bound(Path("/etc", name).resolve(), f"/etc/{name}"))
            for flag, value in instruction.flags:
                assert flag == "mount"
                self._mount(dict(part.partition("=")[::2] for part in value.split(",")), user, stack)
            log = self._room.root.with_name("log")
            log.unlink(missing_ok=True)
            self._room.run(dockerfile.command(instruction.rest), self._variables, user, self.image.folder, log)

    def _mount(self, options: dict[str, str], user: User, stack: contextlib.ExitStack) -> None:
        """RUN --mount: `cache` outlives the build; the secret `pip` is this machine's pip settings."""
        kind = options.pop("type", "bind")
        if kind == "cache" and options.keys() == {"target"}:
            folder = self._store / "caches" / options["target"].strip("/").replace("/", "-")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.chown(folder, user.uid, user.gid)
            stack.enter_context(self._room.bound(folder, options["target"], writable=True))
        elif kind == "secret" and options.keys() == {"id", "target"} and options["id"] == "pip":
            settings = pip_conf.read()
            file = self._store / "pip.conf"
            file.write_text(pip_conf.text(settings))
            stack.callback(file.unlink)
            stack.enter_context(self._room.bound(file, options["target"]))
            for path in pip_conf.local_paths(settings):
                stack.enter_context(self._room.bound(path, str(path)))
        else:
            raise ValueError(f"--mount=type={kind} with {', '.join(options)} is not understood here")

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = self._words(instruction)
        stage = instruction.flag("from")
        if stage is not None and stage not in self._rooms:
            raise ValueError(f"--from={stage} is no earlier stage")
        found = [path for source in sources for path in self._sources(source, stage)]
        place = self._room.inside(str(PurePosixPath(self.image.folder) / target))
        into_folder = target.endswith("/") or len(sources) > 1 or found[0].is_dir()
        if len(sources) > 1 and not target.endswith("/"):
            raise ValueError(f"with more than one source, {target!r} has to end in /")
        (place if into_folder else place.parent).mkdir(parents=True, exist_ok=True)
        for path in found:
            # Of a folder Docker copies what is in it.
            for item in sorted(path.iterdir()) if path.is_dir() else [path]:
                _copy_one(item, place / item.name if into_folder else place, instruction)

    def _sources(self, source: str, stage: str | None) -> list[Path]:
        if stage is not None:
            found = [self._rooms[stage].inside(source)]
        else:
            found = sorted(self._context.glob(source.strip("/")))
        if not found or not found[0].exists():
            raise ValueError(f"{source} is not there")
        return found


def _copy_one(source: Path, target: Path, instruction: Instruction) -> None:
    """As root's own, unless --chown says otherwise; times stay, for compiled bytecode is matched by them."""
    host.run("cp", "-RT", "--no-dereference", "--preserve=mode,timestamps,links", str(source), str(target))
    if owner := instruction.flag("chown"):
        host.run("chown", "--recursive", "--no-dereference", owner, str(target))
    if mode := instruction.flag("chmod"):
        host.run("chmod", "--recursive", mode, str(target))


def _argument(
    instruction: Instruction, variables: dict[str, str], inherited: dict[str, str] | None = None
) -> dict[str, str]:
    """ARG NAME=default, or ARG NAME: then it is what an ARG above the first FROM has said."""
    name, separator, default = instruction.rest.partition("=")
    if separator:
        return {name: "".join(dockerfile.words(default, variables))}
    return {name: inherited[name]} if inherited and name in inherited else {}
