"""`tunesmith up`, without the processes that it starts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from gateway.cli import up
from gateway.cli.__main__ import app
from gateway.cli.children import ChildFailed


def test_every_wrong_option_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--http", "nonsense", "--grpc", "127.0.0.1:99999", "--metrics", "x:y", "--trainers", "65")

    code = app(("up", "--data", str(tmp_path / "data"), *wrong), result_action="return_int_as_exit_code_else_zero")

    lines = capsys.readouterr().err.splitlines()
    assert code == 1
    assert [line.removeprefix("tunesmith up: ").split(" is no ")[0] for line in lines] == [
        "--http 'nonsense'",
        "--grpc '127.0.0.1:99999'",
        "--metrics 'x:y'",
        "--trainers 65: 0 to 64 was wanted",
    ]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("option", ["--data", "--ready-file"])
def test_empty_path_is_not_taken_for_the_current_folder(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit):
        app(("up", option, "", "--trainers", "65"), result_action="return_int_as_exit_code_else_zero")

    assert f"Invalid value for {option}: '': a path was wanted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ready_file_that_could_never_be_written_is_told_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"

    code = app(
        ("up", "--data", str(tmp_path / "data"), "--ready-file", str(gone / "ready.json"), "--trainers", "65"),
        result_action="return_int_as_exit_code_else_zero",
    )

    wanted = "wanted a file in a folder that is there and may be written to"
    assert code == 1
    ready_file = f"tunesmith up: --ready-file {gone}/ready.json: {wanted}, which {gone} is not"
    assert capsys.readouterr().err.splitlines()[1:] == [ready_file]
    assert not (tmp_path / "data").exists()


def test_ready_file_may_lie_in_the_folder_that_is_made(tmp_path: Path) -> None:
    free, data = "127.0.0.1:0", tmp_path / "new" / "data"

    for folder in (data, data.parent):
        up.Up(data=data, http=free, grpc=free, metrics=free, trainers=0, device="cpu", ready_file=folder / "ready.json")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    app(("--version",), result_action="return_int_as_exit_code_else_zero")

    assert capsys.readouterr().out.strip() == version("tunesmith")


async def test_ready_file_of_a_killed_run_is_gone_before_any_child_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_file = tmp_path / "ready.json"
    ready_file.write_text('{"pids": {"gateway": [1]}}')
    there: list[bool] = []

    class Child:
        """Looks for the file instead of starting anything."""

        def __init__(self, *_: object) -> None:
            self.pid = None

        async def run(self, on_ready: Callable[[], None]) -> None:
            there.append(ready_file.exists())
            raise ChildFailed("it was never meant to start")

    monkeypatch.setattr(up, "Child", Child)
    free = "127.0.0.1:0"
    service = up.Up(
        data=tmp_path / "data", http=free, grpc=free, metrics=free, trainers=1, device="cpu", ready_file=ready_file
    )

    with pytest.raises(up.UpError, match="never meant"):
        await service.run()

    assert there == [False]
