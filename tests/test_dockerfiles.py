"""What the images promise by their text, and that the interpreter of scripts/dockerfiles reads it as Docker does. The
images themselves are built and run by scripts/dockerfiles, which wants root and minutes."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.dockerfiles import context, dockerfile, pip_conf
from deploy.dockerfiles.build import Healthcheck, Image, Steps
from deploy.dockerfiles.dockerfile import Dockerfile, DockerfileError, Instruction
from deploy.dockerfiles.room import Room, RoomError, User

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = ("gateway", "trainer")


def text(name: str) -> str:
    return (REPOSITORY / f"Dockerfile.{name}").read_text()


def last_stage(name: str, instruction: str) -> list[Instruction]:
    return [one for one in dockerfile.parse(text(name)).stages[-1].instructions if one.name == instruction]


# The images' text


@pytest.mark.parametrize("name", IMAGES)
def test_base_is_one_pinned_point_release_of_the_interpreter_that_the_project_wants(name: str) -> None:
    parsed = dockerfile.parse(text(name))

    (base,) = [argument.rest for argument in parsed.arguments]
    assert re.fullmatch(r"BASE=debian:12\.\d+-slim", base)
    assert {stage.base for stage in parsed.stages} == {"${BASE}", "dependencies"}


@pytest.mark.parametrize("name", IMAGES)
def test_python_packages_are_pinned_by_the_constraints_for_builds_too(name: str) -> None:
    environment = [one.rest for one in dockerfile.parse(text(name)).stages[0].instructions if one.name == "ENV"]

    assert any("PIP_CONSTRAINT=/src/constraints.txt" in line for line in environment)


def test_every_pinned_range_of_the_images_has_a_constraint() -> None:
    pins = {re.split(r"==", line)[0].lower().replace("_", "-") for line in constraints()}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    wanted = {
        re.split(r"[\[<>=;~ ]", line)[0].lower()
        for line in [*project["dependencies"], *extras["gateway"], *extras["trainer"]]
    }
    assert wanted <= pins


def constraints() -> list[str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", IMAGES)
def test_image_runs_as_a_fixed_user_that_is_not_root(name: str) -> None:
    (user,) = last_stage(name, "USER")

    assert user.rest == "10001:10001"
    assert any("useradd --uid 10001" in one.rest for one in last_stage(name, "RUN"))


@pytest.mark.parametrize("name", IMAGES)
def test_image_says_how_it_is_asked_stopped_and_kept(name: str) -> None:
    (check,) = last_stage(name, "HEALTHCHECK")
    (stop,) = last_stage(name, "STOPSIGNAL")
    (volume,) = last_stage(name, "VOLUME")
    (entrypoint,) = last_stage(name, "ENTRYPOINT")

    assert check.rest.startswith('CMD ["healthy", "TUNESMITH_')
    assert dockerfile.seconds(check.flag("timeout") or "") > 3  # healthy's own
    assert stop.rest == "SIGTERM"
    assert volume.rest == "/data"
    assert dockerfile.command(entrypoint.rest) == (f"tunesmith-{name}",)


@pytest.mark.parametrize("name", IMAGES)
def test_last_stage_installs_no_compiler_and_no_pip(name: str) -> None:
    for one in last_stage(name, "RUN"):
        assert not re.search(r"build-essential|gcc|g\+\+|python3-pip|python3-venv|\bgit\b|curl|wget", one.rest)
    assert {one.flag("from") for one in last_stage(name, "COPY")} == {"dependencies", "package", None}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_only_its_own_half(name: str) -> None:
    other = {"gateway": {"trainer"}, "trainer": {"gateway", "store"}}[name]
    copied = {
        word.strip("/")
        for one in dockerfile.parse(text(name)).stages[1].instructions
        if one.name == "COPY"
        for word in one.rest.split()
    }

    assert not copied & other


@pytest.mark.parametrize("name", IMAGES)
def test_no_registry_or_index_is_named(name: str) -> None:
    assert not re.search(r"https?://|index-url|find-links|\.(io|com|org|net)/", text(name))


@pytest.mark.parametrize("name", IMAGES)
def test_interpreter_knows_every_instruction_of_the_images(name: str) -> None:
    parsed = dockerfile.parse(text(name))

    for stage in parsed.stages:
        for one in stage.instructions:
            assert hasattr(Steps, f"_{one.name.lower()}")


def test_every_file_that_the_images_copy_is_in_the_context() -> None:
    ignore = (REPOSITORY / ".dockerignore").read_text().splitlines()
    wanted = ["gateway/server.py", "store/tables.py", "trainer/pipe.py", "protos/build.py", "deploy/healthy.py"]
    unwanted = [
        "tests/conftest.py",
        ".git/config",
        "docs/deploying.md",
        "deploy/compose.yaml",
        "protos/tunesmith/v1/tune_pb2.py",
    ]

    assert not [name for name in wanted if context.ignored(name, ignore)]
    assert [name for name in unwanted if context.ignored(name, ignore)] == unwanted


# The parser


def only(text: str) -> Instruction:
    (instruction,) = dockerfile.parse(f"FROM debian:12.1-slim\n{text}").stages[0].instructions
    return instruction


@pytest.mark.parametrize("line", ["ADD a b", "ONBUILD RUN x", 'SHELL ["x"]', "RUNN x", "MAINTAINER me"])
def test_unknown_instruction_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(DockerfileError, match=rf"^3: {line.split()[0]} is not understood"):
        dockerfile.parse(f"FROM debian:12.1-slim\n\n{line}")


@pytest.mark.parametrize(
    "line",
    ["COPY --link a b", "RUN --network=none x", "COPY --exclude=x a b", "FROM --platform=linux/amd64 x", "RUN <<EOF"],
)
def test_unknown_flag_or_form_is_refused(line: str) -> None:
    with pytest.raises(DockerfileError, match="not understood"):
        dockerfile.parse(f"FROM debian:12.1-slim\n{line}")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no FROM"), ("RUN x", "before the first FROM"), ("FROM a b", "AS NAME"), ("FROM a\nUSER", "says nothing")],
)
def test_file_without_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(DockerfileError, match=said):
        dockerfile.parse(text)


def test_stages_have_bases_names_and_instructions() -> None:
    parsed = dockerfile.parse("ARG BASE=debian:12.1-slim\nfrom ${BASE} as one\nRUN a\nFROM one\nUSER 1\n")

    assert isinstance(parsed, Dockerfile)
    assert [argument.rest for argument in parsed.arguments] == ["BASE=debian:12.1-slim"]
    assert [(stage.base, stage.name, len(stage.instructions)) for stage in parsed.stages] == [
        ("${BASE}", "one", 1),
        ("one", "", 1),
    ]


def test_continued_lines_are_joined_and_comments_between_them_vanish() -> None:
    instruction = only("# before\nRUN a \\\n  # between\n\n && b\n# after")

    assert instruction.line == 3
    assert instruction.rest.split() == ["a", "&&", "b"]


def test_flags_stand_before_what_is_run() -> None:
    instruction = only("RUN --mount=type=cache,target=/c --mount=type=secret,id=pip,target=/p x --mount=no")

    assert instruction.flags == (("mount", "type=cache,target=/c"), ("mount", "type=secret,id=pip,target=/p"))
    assert instruction.rest == "x --mount=no"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a  b", ["a", "b"]),
        ('A="x y" B=1', ["A=x y", "B=1"]),
        ("$ONE-${ONE}", ["1-1"]),
        ("'$ONE' \"$ONE\"", ["$ONE", "1"]),
        ("${NONE:-other} ${ONE:+there} ${NONE:+there}", ["other", "there"]),
        ('$TWO "$TWO"', ["a", "b", "a b"]),
        (r"\$ONE a\ b", ["$ONE", "a b"]),
        ('""', [""]),
    ],
)
def test_words_are_split_and_variables_replaced_as_docker_does(text: str, wanted: list[str]) -> None:
    assert dockerfile.words(text, {"ONE": "1", "TWO": "a b"}) == wanted


def test_quote_that_is_never_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="never closed"):
        dockerfile.words('"a', {})


def test_env_without_value_is_refused() -> None:
    with pytest.raises(ValueError, match="NAME=VALUE was wanted"):
        dockerfile.pairs("A 1", {})


@pytest.mark.parametrize(("text", "wanted"), [('["a", "b c"]', ("a", "b c")), ("a b", ("/bin/sh", "-c", "a b"))])
def test_command_is_a_list_or_a_shell_line(text: str, wanted: tuple[str, ...]) -> None:
    assert dockerfile.command(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), [("30s", 30.0), ("1m30s", 90.0), ("500ms", 0.5), ("2h", 7200.0)])
def test_durations_are_read(text: str, wanted: float) -> None:
    assert dockerfile.seconds(text) == wanted


@pytest.mark.parametrize("text", ["30", "s", "1d", "30 s", ""])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        dockerfile.seconds(text)


# The steps that only note something, and COPY


def steps(tmp_path: Path) -> Steps:
    for folder in ("root/etc", "context", "stage/opt/venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    rooms = {"builder": Room(tmp_path / "stage")}
    return Steps(
        Image((tmp_path / "root",)), Room(tmp_path / "root"), rooms, tmp_path / "context", tmp_path, {"BASE": "b"}
    )


def after(steps: Steps, *lines: str) -> Image:
    for instruction in dockerfile.parse("\n".join(["FROM x", *lines])).stages[0].instructions:
        steps.step(instruction)
    return steps.image


def test_image_takes_what_its_instructions_say(tmp_path: Path) -> None:
    image = after(
        steps(tmp_path),
        "ARG BASE",
        "ARG PORT=80",
        "ENV A=$BASE/$PORT B=2",
        "ENV B=$A",
        "WORKDIR /a",
        "WORKDIR b",
        "USER 5:6",
        "EXPOSE $PORT 81",
        'VOLUME ["/data"]',
        "STOPSIGNAL SIGINT",
        "HEALTHCHECK --interval=2s --retries=7 CMD true",
        'ENTRYPOINT ["e"]',
        'CMD ["c"]',
    )

    assert image.environment == {"A": "b/80", "B": "b/80"}
    assert (image.folder, image.user, image.stop_signal) == ("/a/b", "5:6", "SIGINT")
    assert (image.ports, image.volumes) == (("80", "81"), ("/data",))
    assert image.healthcheck == Healthcheck(("/bin/sh", "-c", "true"), interval=2.0, retries=7)
    assert (*image.entrypoint, *image.arguments) == ("e", "c")
    assert (tmp_path / "root/a/b").is_dir()


def test_copy_puts_files_into_a_folder_and_a_folders_content_into_another(tmp_path: Path) -> None:
    ready = steps(tmp_path)
    (tmp_path / "context/one.txt").write_text("1")
    (tmp_path / "context/two.txt").write_text("2")
    (tmp_path / "stage/opt/venv/bin/python").symlink_to("/usr/bin/python3")

    after(ready, "COPY *.txt /texts/", "COPY one.txt /renamed", "COPY --from=builder /opt/venv /opt/venv")

    root = tmp_path / "root"
    assert sorted(path.name for path in (root / "texts").iterdir()) == ["one.txt", "two.txt"]
    assert (root / "renamed").read_text() == "1"
    assert (root / "opt/venv/bin/python").readlink() == Path("/usr/bin/python3")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("COPY none /x", "is not there"),
        ("COPY --from=other /a /b", "no earlier stage"),
        ("COPY a.txt b.txt /x", "end in /"),
    ],
)
def test_copy_that_cannot_be_is_refused(tmp_path: Path, line: str, said: str) -> None:
    ready = steps(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / "context" / name).touch()

    with pytest.raises(ValueError, match=said):
        after(ready, line)


def test_links_of_an_image_never_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "out").symlink_to("../../../../etc")
    (tmp_path / "absolute").symlink_to("/usr")
    (tmp_path / "circle").symlink_to("circle")
    room = Room(tmp_path)

    assert room.inside("/bin/sh") == tmp_path / "usr/bin/sh"
    assert room.inside("/out/passwd") == tmp_path / "etc/passwd"
    assert room.inside("/absolute/bin/../x") == tmp_path / "usr/x"
    with pytest.raises(RoomError, match="circle of links"):
        room.inside("/circle")


def test_user_is_found_by_name_or_number(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ntune:x:10001:10002::/data:/bin/false\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    room = Room(tmp_path)

    assert room.user("tune") == room.user("10001") == User(10001, 10002, "/data")
    assert room.user("10001:video") == User(10001, 44, "/data")
    assert room.user("7:8") == User(7, 8, "/")
    with pytest.raises(RoomError, match="no such user"):
        room.user("nobody-here")


# .dockerignore, pip, healthy


@pytest.mark.parametrize(
    ("patterns", "ignored", "kept"),
    [
        (["*", "!a"], ["b", "b/a"], ["a", "a/b"]),
        (["*.py"], ["a.py"], ["a/b.py"]),
        (["**/*.py"], ["a.py", "a/b/c.py"], ["a.pyx"]),
        (["a/**", "!a/keep"], ["a/b", "a/b/c"], ["a/keep", "b"]),
        (["# a", "", "?.txt"], ["b.txt"], ["a", "bb.txt"]),
    ],
)
def test_last_pattern_of_dockerignore_that_matches_decides(
    patterns: list[str], ignored: list[str], kept: list[str]
) -> None:
    assert [name for name in ignored if context.ignored(name, patterns)] == ignored
    assert [name for name in kept if context.ignored(name, patterns)] == []


def test_context_is_what_git_tracks_and_tells_what_it_does_not(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "a").mkdir(parents=True)
    for name, content in ((".dockerignore", "*\n!a\n"), ("a/old.py", "1"), ("a/new.py", "2"), ("other", "3")):
        (repository / name).write_text(content)
    for arguments in (["init", "-q"], ["add", "a/old.py", "other"]):
        subprocess.run(["git", *arguments], cwd=repository, check=True)
    (repository / "a/old.py").write_text("as it stands")

    assert context.gather(repository, tmp_path / "context") == (1, ["a/new.py"])
    assert (tmp_path / "context/a/old.py").read_text() == "as it stands"


def test_pip_settings_become_one_file_and_local_folders_are_found(tmp_path: Path) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    settings = {"find-links": f"{tmp_path}/wheels /none", "extra-index-url": f"file://{tmp_path}/index/simple\n"}

    assert (
        pip_conf.text(settings)
        == f"[global]\nfind-links = {tmp_path}/wheels /none\nextra-index-url = file://{tmp_path}/index/simple\n"
    )
    assert pip_conf.local_paths(settings) == [tmp_path / "wheels", tmp_path / "index"]


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def healthy(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "deploy/healthy.py"), "ADDRESS", "/health", *arguments]
    return subprocess.run(
        command,
        env={"ADDRESS": address, "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("status", "line", "code"), [(200, (), 0), (503, (), 1), (200, ("ready 1.0",), 0), (200, ("ready 1",), 1)]
)
def test_healthy_tells_by_status_and_line(status: int, line: tuple[str, ...], code: int) -> None:
    with answering(status, b"# HELP\nready 1.0\n") as port:
        done = healthy(f"0.0.0.0:{port}", *line)

    assert done.returncode == code
    assert bool(done.stderr) == bool(code)


def test_healthy_says_what_is_wrong_where_nobody_answers() -> None:
    assert "ADDRESS does not say HOST:PORT" in healthy("").stderr
    done = healthy("127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1/health: " in done.stderr
    assert "Traceback" not in done.stderr
