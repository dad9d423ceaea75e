"""What every end-to-end test starts from: a running service, photographs, and a look at the processes it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import photographs
from tests.servers.gateway import Account, Gateway
from tests.servers.service import Client, Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One `tunesmith up` with one trainer, for all tests that do not break it."""
    with Service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def gateway(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway to which no trainer ever comes: what is created on it stays pending."""
    folder = tmp_path_factory.mktemp("gateway")
    path = shutil.copy(sqlite_template, folder / "tunesmith.db")
    with Gateway(f"sqlite:///{path}", folder) as gateway:
        yield gateway


@pytest.fixture
def account(gateway: Gateway) -> Account:
    """A tenant of that gateway that owns nothing yet."""
    return gateway.account()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six photographs, PNG and JPEG, one turned by EXIF."""
    return photographs.photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a JPEG."""
    return photographs.truncated(tmp_path_factory.mktemp("truncated"))
