"""The hosted service's own Python SDK, `octoai` from PyPI, unmodified and pointed at a gateway: sync and async."""

from __future__ import annotations

import asyncio
import inspect
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import octoai.uploading_asset_library
import pytest
from octoai.asset_library import Data_Checkpoint, Data_File, Data_Lora, Data_TextualInversion
from octoai.asset_library import UnprocessableEntityError as AssetUnprocessable
from octoai.client import AsyncOctoAI, OctoAI
from octoai.core.api_error import ApiError
from octoai.environment import OctoAIEnvironment
from octoai.fine_tuning import Details_LoraTune, LoraTuneCheckpoint, LoraTuneFile
from octoai.fine_tuning import UnprocessableEntityError as TuneUnprocessable
from octoai.uploading_asset_library import AssetNotReady
from safetensors.numpy import load

from tests.servers.gateway import Account, Gateway
from tests.servers.service import Service
from tests.servers.site import Site, apart

CHECKPOINT = "tunesmith:tiny-shapes"
SD15 = "image/stable-diffusion-v1-5"
SDXL = "image/stable-diffusion-xl-v1-0"
UNKNOWN = "asset_00000000000000000000000000"

Open = Callable[[str, str], Any]
"""(base URL, key) -> a client."""


class Awaited:
    """An async client behind the face of the sync one: each call runs to its end."""

    def __init__(self, wrapped: Any, runner: asyncio.Runner) -> None:
        self._wrapped, self._runner = wrapped, runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        if inspect.iscoroutinefunction(found):
            return lambda *args, **kwargs: self._runner.run(found(*args, **kwargs))
        return Awaited(found, self._runner)


@pytest.fixture(params=["sync", "async"])
def open_sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens clients of either kind, and closes what they leave open themselves."""

    sleep, async_sleep = time.sleep, asyncio.sleep

    async def nap(seconds: float) -> None:
        """The SDK sleeps ten seconds after each upload, whatever became of it, and between two looks at a fetch."""
        await async_sleep(min(seconds, 0.02))

    asleep = SimpleNamespace(sleep=lambda seconds: sleep(min(seconds, 0.02)), monotonic=time.monotonic)
    monkeypatch.setattr(octoai.uploading_asset_library, "time", asleep)
    awake = SimpleNamespace(sleep=nap, get_running_loop=asyncio.get_running_loop)
    monkeypatch.setattr(octoai.uploading_asset_library, "asyncio", awake)

    def environment(url: str) -> OctoAIEnvironment:
        return OctoAIEnvironment(default=url, image_gen=url, text_gen=url)

    if request.param == "sync":
        opened: list[httpx.Client] = []

        def open_sync(url: str, key: str) -> OctoAI:
            client = OctoAI(environment=environment(url), api_key=key)
            opened.append(client._client_wrapper.httpx_client.httpx_client)
            return client

        yield open_sync
        for http in opened:
            http.close()
        return

    with asyncio.Runner() as runner:
        opened_async: list[httpx.AsyncClient] = []

        def open_async(url: str, key: str) -> Awaited:
            client = AsyncOctoAI(environment=environment(url), api_key=key)
            opened_async.append(client._client_wrapper.httpx_client.httpx_client)
            opened_async.append(client.asset_library._signed_url_client)
            return Awaited(client, runner)

        yield open_async
        for http_async in opened_async:
            runner.run(http_async.aclose())


@pytest.fixture
def sdk(open_sdk: Open, account: Account) -> Any:
    """A client of a gateway without a trainer."""
    return open_sdk(account.url, account.key)


@pytest.fixture
def picture(sdk: Any, pictures: list[Path]) -> str:
    """The id of an uploaded picture."""
    asset_id: str = sdk.asset_library.create_from_file(str(pictures[0]), Data_File(file_format="png"), "cat").id
    return asset_id


def details(files: list[str], *, checkpoint: str = CHECKPOINT, word: str = "sks", **changes: Any) -> Details_LoraTune:
    """What is to be trained, by the SDK's own models."""
    return Details_LoraTune(
        base_checkpoint=LoraTuneCheckpoint(checkpoint_id=checkpoint),
        files=[LoraTuneFile(file_id=file_id) for file_id in files],
        trigger_words=[word],
        **{"steps": 10, **changes},
    )


# ------------------------------------------------------------------------------------------------------------ uploading


def test_picture_from_a_file_is_ready(sdk: Any, account: Account, pictures: list[Path]) -> None:
    asset = sdk.asset_library.create_from_file(str(pictures[2]), Data_File(), "rocket", description="goes up")

    assert (asset.status, asset.asset_type, asset.name, asset.description) == ("ready", "file", "rocket", "goes up")
    assert asset.size_bytes == pictures[2].stat().st_size
    assert asset.data.file_format == "jpg"
    assert asset.tenant_uuid == account.tenant_id
    assert (asset.is_public, asset.file_structure, asset.status_info) == (False, "single_file", None)


class Pipe(io.RawIOBase):
    """A file that tells nobody its length: it cannot be sought in, and has no descriptor."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(buffer)


def test_picture_from_a_stream_of_unknown_length_arrives_whole(sdk: Any, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()

    asset = sdk.asset_library.create_from_file(Pipe(content), Data_File(file_format="png"), "streamed")

    assert (asset.status, asset.size_bytes) == ("ready", len(content))
    assert httpx.get(sdk.asset_library.get(asset.id).transfer_api.get_url).content == content


def test_truncated_picture_is_rejected_with_a_reason(sdk: Any, truncated: Path) -> None:
    with pytest.raises(AssetNotReady, match="rejected"):
        sdk.asset_library.create_from_file(str(truncated), Data_File(file_format="jpg"), "half")

    asset = sdk.asset_library.get("half").asset
    assert asset.status_details
    assert asset.status_info == {"reason": "TRUNCATED"}


def test_completion_with_nothing_uploaded_is_an_error(sdk: Any) -> None:
    created = sdk.asset_library.create(asset_type="file", data=Data_File(), name="nothing")

    with pytest.raises(ApiError) as caught:
        sdk.asset_library.complete_upload(created.asset.id, token=created.token)

    assert caught.value.status_code == 400
    assert sdk.asset_library.get(created.asset.id).asset.status == "ready_to_upload"


def test_transfer_api_that_is_asked_for_is_answered_with_signed_urls(sdk: Any, pictures: list[Path]) -> None:
    created = sdk.asset_library.create(asset_type="file", data=Data_File(), name="sts", transfer_api_type="sts")
    httpx.put(created.transfer_api.put_url, content=pictures[0].read_bytes()).raise_for_status()
    completed = sdk.asset_library.complete_upload(created.asset.id, token=created.token, skip_validation=True)

    fetched = {kind: sdk.asset_library.get("sts", transfer_api_type=kind) for kind in ("sts", "presigned-url")}

    assert created.transfer_api.type == "presigned-url"
    assert completed.error is None
    for answer in fetched.values():
        assert (answer.asset.id, answer.transfer_api.type) == (created.asset.id, "presigned-url")
        assert httpx.get(answer.transfer_api.get_url).content == pictures[0].read_bytes()


def test_url_to_fetch_is_refused_where_fetching_is_not_configured(sdk: Any) -> None:
    with pytest.raises(ApiError) as caught:
        sdk.asset_library.create_from_url("https://pictures.example/cat.png", Data_File(), "fetched")

    assert caught.value.status_code == 400


@pytest.fixture(scope="module")
def fetcher(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that fetches, from this host too."""
    folder = tmp_path_factory.mktemp("fetcher")
    path = shutil.copy(sqlite_template, folder / "tunesmith.db")
    settings = {"TUNESMITH_FETCH": "on", "TUNESMITH_OUTBOUND_ALLOW": "127.0.0.0/8"}
    with Gateway(f"sqlite:///{path}", folder, settings) as gateway:
        yield gateway


@pytest.fixture
def photograph_site(pictures: list[Path], truncated: Path) -> Iterator[str]:
    """A site with a good picture and half of one."""
    site = Site()
    site.answers["/cat.png"] = 200, {}, pictures[0].read_bytes()
    site.answers["/half.jpg"] = 200, {}, truncated.read_bytes()
    with apart(site) as (url, _):
        yield url


def test_picture_from_a_url_is_fetched_and_ready(
    open_sdk: Open, fetcher: Gateway, photograph_site: str, pictures: list[Path]
) -> None:
    library = open_sdk(fetcher.ready["http"], fetcher.account().key).asset_library

    asset = library.create_from_url(f"{photograph_site}/cat.png?key=secret", Data_File(), "fetched")

    assert (asset.status, asset.data.file_format, asset.url) == ("ready", "png", f"{photograph_site}/cat.png")
    assert httpx.get(library.get("fetched").transfer_api.get_url).content == pictures[0].read_bytes()


def test_url_that_gives_no_picture_is_told(open_sdk: Open, fetcher: Gateway, photograph_site: str) -> None:
    library = open_sdk(fetcher.ready["http"], fetcher.account().key).asset_library

    with pytest.raises(AssetNotReady, match="rejected"):
        library.create_from_url(f"{photograph_site}/half.jpg", Data_File(), "half")
    with pytest.raises(AssetNotReady, match="error"):
        library.create_from_url(f"{photograph_site}/missing.png", Data_File(), "missing")
    with pytest.raises(AssetUnprocessable) as caught:
        library.create_from_url("http://169.254.169.254/latest/meta-data", Data_File(), "metadata")

    assert library.get("half").asset.status_info == {"reason": "TRUNCATED"}
    assert library.get("missing").asset.status_details == "127.0.0.1 answered 404"
    [fault] = caught.value.body.detail
    assert (fault.loc, fault.msg) == (["body", "url"], "its host 169.254.169.254 is not a public address")


# -------------------------------------------------------------------------------------------------------------- look-up


def test_asset_is_found_by_id_name_and_owner(sdk: Any, account: Account, picture: str) -> None:
    found = [sdk.asset_library.get(how).asset.id for how in (picture, "cat", f"{account.name}:cat")]

    assert found == [picture, picture, picture]


def test_name_that_the_sdk_does_not_escape_is_found(sdk: Any, account: Account) -> None:
    names = ["a cat (1)", "größer & <b>", "1+1=2;3,4", "'once' \"twice\"", "~$@!*[]", "..."]

    made = [sdk.asset_library.create(asset_type="file", data=Data_File(), name=name).asset.id for name in names]

    assert [sdk.asset_library.get(name).asset.id for name in names] == made
    assert [sdk.asset_library.get(f"{account.name}:{name}").asset.id for name in names] == made
    assert [[asset.id for asset in sdk.asset_library.list(name=name).data] for name in names] == [[one] for one in made]


def test_public_catalogue_is_seen_by_every_tenant(sdk: Any) -> None:
    fetched = sdk.asset_library.get(CHECKPOINT)
    public = sdk.asset_library.list(is_public=True, owner="octoai")

    assert (fetched.asset.asset_type, fetched.asset.is_public, fetched.asset.status) == ("checkpoint", True, "ready")
    assert (fetched.asset.data.engine, fetched.transfer_api.type) == (SD15, "none")
    assert {asset.name: asset.data.engine for asset in public.data} == {"default-sd15": SD15, "default-sdxl": SDXL}
    assert (public.total, public.has_more) == (2, False)


FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"png", "jpg", "bare", "words", "style"}),
    ({"name": "jpg"}, {"jpg"}),
    ({"name": "no such"}, set()),
    ({"is_public": False}, {"png", "jpg", "bare", "words", "style"}),
    ({"data_type": "fp16"}, {"style"}),
    ({"asset_type": "file"}, {"png", "jpg", "bare"}),
    ({"asset_type": ["lora", "textual_inversion"]}, {"words", "style"}),
    ({"engine": SD15}, {"style"}),
    ({"engine": [SD15, SDXL]}, {"words", "style"}),
    ({"engine_type": "image"}, {"words", "style"}),
    ({"engine_type": "text"}, set()),
    ({"file_format": "png"}, {"png"}),
    ({"file_format": ["jpg", "safetensors"]}, {"jpg", "style"}),
    ({"owner": "nobody"}, set()),
    ({"asset_type": "file", "file_format": ["jpg"], "name": "jpg", "is_public": False}, {"jpg"}),
]


@pytest.fixture(scope="module")
def shelf(gateway: Any, pictures: list[Path]) -> Account:
    """A tenant with an asset for each filter."""
    account: Account = gateway.account()
    with account.client() as client:
        for name, path in (("png", pictures[0]), ("jpg", pictures[2])):
            client.upload(path, name=name)
        for name, data in (
            ("bare", {"asset_type": "file"}),
            ("words", {"asset_type": "textual_inversion", "engine": SDXL, "trigger_words": ["sks"]}),
            ("style", {"asset_type": "lora", "engine": SD15, "data_type": "fp16", "file_format": "safetensors"}),
        ):
            body = {"asset_type": data["asset_type"], "name": name, "data": data}
            client.post("/v1/assets", json=body).raise_for_status()
    return account


@pytest.mark.parametrize(("which", "names"), FILTERS, ids=lambda value: ",".join(sorted(value)) or "none")
def test_each_filter_of_assets_is_heard(open_sdk: Open, shelf: Account, which: dict[str, Any], names: set[str]) -> None:
    found = open_sdk(shelf.url, shelf.key).asset_library.list(**which)

    assert {asset.name for asset in found.data} == names
    assert (found.total, found.has_more) == (len(names), False)


def test_assets_come_in_pages_newest_first(open_sdk: Open, shelf: Account) -> None:
    library = open_sdk(shelf.url, shelf.key).asset_library

    pages = [library.list(limit=2, offset=offset) for offset in (0, 2, 4)]

    assert [[asset.name for asset in page.data] for page in pages] == [["style", "words"], ["bare", "jpg"], ["png"]]
    assert [(page.total, page.has_more) for page in pages] == [(5, True), (5, True), (5, False)]


def test_assets_are_listed_by_their_ids_and_with_previews(open_sdk: Open, shelf: Account, pictures: list[Path]) -> None:
    library = open_sdk(shelf.url, shelf.key).asset_library
    ids = {name: library.get(name).asset.id for name in ("png", "style")}

    found = {asset.id: asset for asset in library.list(asset_ids=",".join(ids.values()), get_preview_urls=True).data}

    assert set(found) == set(ids.values())
    assert httpx.get(found[ids["png"]].data.preview_url).content == pictures[0].read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        Data_Checkpoint(engine=SDXL, data_type="fp16", file_format="safetensors"),
        Data_Lora(engine=SD15, trigger_words=["sks"], checkpoint=UNKNOWN),
        Data_TextualInversion(engine=SD15, trigger_words=["sks"], data_type="fp32", file_format="pt"),
    ],
    ids=lambda data: str(data.asset_type),
)
def test_data_of_every_arm_comes_back_as_it_was_given(sdk: Any, data: Any) -> None:
    created = sdk.asset_library.create(asset_type=data.asset_type, data=data, name="arm")

    asset = sdk.asset_library.get(created.asset.id).asset

    assert type(asset.data) is type(data)
    assert asset.data.dict(exclude_none=True) == data.dict(exclude_none=True)
    assert sdk.asset_library.get(created.asset.id).transfer_api.put_url


def test_deleted_asset_is_gone(sdk: Any, picture: str) -> None:
    deleted = sdk.asset_library.delete(picture)

    assert deleted.id == picture
    assert deleted.deleted_at
    for how in (picture, "cat"):
        with pytest.raises(ApiError) as caught:
            sdk.asset_library.get(how)
        assert caught.value.status_code == 404


# ---------------------------------------------------------------------------------------------------------------- tunes


def test_created_tune_comes_back_with_all_that_was_asked(sdk: Any, account: Account, picture: str) -> None:
    asked = Details_LoraTune(
        base_checkpoint=LoraTuneCheckpoint(checkpoint_id=CHECKPOINT, engine=SD15),
        files=[LoraTuneFile(file_id=picture, caption="a cat, sks")],
        steps=10,
        seed=2**32 - 1,
        resize_images=False,
        trigger_words=["sks"],
    )

    tune = sdk.fine_tuning.create(name="cats", description="two", details=asked, continue_on_rejection=True)

    assert tune == sdk.fine_tuning.get(tune.id)
    assert (tune.name, tune.description, tune.tune_type, tune.status) == ("cats", "two", "lora_tune", "pending")
    assert tune.tenant_id == account.tenant_id
    assert (tune.output_lora_ids, tune.result, tune.succeeded_at, tune.deleted_at) == ([], None, None, None)
    told = tune.details.dict(exclude_none=True)
    assert told.pop("base_checkpoint")["name"] == "tiny-shapes"
    assert told == {key: value for key, value in asked.dict().items() if key != "base_checkpoint"}


def test_tune_without_a_description_has_an_empty_one(sdk: Any, picture: str) -> None:
    tune = sdk.fine_tuning.create(name="bare", details=details([picture]))

    assert tune.description == ""
    assert (tune.details.seed, tune.details.resize_images) == (None, None)


def test_cancelled_tune_stays_cancelled_and_a_deleted_one_frees_its_name(sdk: Any, picture: str) -> None:
    tune = sdk.fine_tuning.create(name="again", details=details([picture]))

    cancelled = [sdk.fine_tuning.cancel(tune.id).status for _ in range(2)]
    deleted = sdk.fine_tuning.delete(tune.id)

    assert cancelled == ["cancelled", "cancelled"]
    assert deleted == {}
    with pytest.raises(ApiError) as caught:
        sdk.fine_tuning.get(tune.id)
    assert caught.value.status_code == 404
    assert sdk.fine_tuning.create(name="again", details=details([picture], steps=11)).status == "pending"


def test_each_filter_of_tunes_is_heard(sdk: Any, picture: str) -> None:
    base = sdk.asset_library.get(CHECKPOINT).asset.id
    sdk.fine_tuning.create(name="cat", details=details([picture], word="cat"))
    sdk.fine_tuning.create(name="dog", details=details([picture], word="dog", checkpoint="octoai:default-sdxl"))

    def names(**which: Any) -> list[str]:
        found = sdk.fine_tuning.list(**which)
        assert found.total >= len(found.data)
        return [tune.name for tune in found.data]

    assert names() == names(tune_type="lora_tune") == names(limit=100, offset=0) == ["dog", "cat"]
    assert names(limit=1) == names(name="dog") == names(engine=SDXL) == names(trigger_words="dog") == ["dog"]
    assert names(offset=1) == names(base_checkpoint_id=base) == names(base_checkpoint_id=CHECKPOINT) == ["cat"]
    assert names(trigger_words=["cat"], engine=SD15, name="cat", tune_type="lora_tune") == ["cat"]
    assert names(trigger_words=["cat", "dog"]) == names(engine=SDXL, name="cat") == []
    first = sdk.fine_tuning.list(limit=1)
    assert (first.total, first.has_more) == (2, True)


# --------------------------------------------------------------------------------------------------------------- errors


def test_wrong_tune_raises_the_sdks_own_error_with_each_place(sdk: Any, picture: str) -> None:
    with pytest.raises(TuneUnprocessable) as caught:
        sdk.fine_tuning.create(name="a/b", details=details([picture, UNKNOWN], steps=0, seed=-1))

    assert caught.value.status_code == 422
    places = [tuple(violation.loc) for violation in caught.value.body.detail]
    assert {("body", "name"), ("body", "details", "steps"), ("body", "details", "seed")} <= set(places)
    assert all(violation.msg and violation.type for violation in caught.value.body.detail)


def test_unknown_file_raises_the_sdks_own_error_with_its_index(sdk: Any, picture: str) -> None:
    with pytest.raises(TuneUnprocessable) as caught:
        sdk.fine_tuning.create(name="unknown", details=details([picture, UNKNOWN]))

    assert [violation.loc for violation in caught.value.body.detail] == [["body", "details", "files", 1, "file_id"]]


def test_wrong_filter_raises_the_sdks_own_error(sdk: Any) -> None:
    with pytest.raises(AssetUnprocessable) as caught:
        sdk.asset_library.list(limit=101, data_type="fp8")

    assert {tuple(violation.loc) for violation in caught.value.body.detail} == {
        ("query", "limit"),
        ("query", "data_type"),
    }


def test_other_errors_bear_their_status_and_a_sentence(
    open_sdk: Open, sdk: Any, account: Account, picture: str
) -> None:
    sdk.fine_tuning.create(name="taken", details=details([picture]))
    stranger = open_sdk(account.url, "ts_wrong")
    calls: list[tuple[int, str, Callable[[], Any]]] = [
        (401, "UNAUTHENTICATED", lambda: stranger.fine_tuning.list()),
        (404, "NOT_FOUND", lambda: sdk.fine_tuning.get("tune_unknown")),
        (404, "NOT_FOUND", lambda: sdk.asset_library.delete("asset_unknown")),
        (409, "ALREADY_EXISTS", lambda: sdk.fine_tuning.create(name="taken", details=details([picture], steps=11))),
    ]

    for status, code, call in calls:
        with pytest.raises(ApiError) as caught:
            call()
        assert (caught.value.status_code, caught.value.body["code"]) == (status, code)
        assert isinstance(caught.value.body["detail"], str)


# ------------------------------------------------------------------------------------------------------------ the whole


def test_whole_run_from_pictures_to_a_lora(
    open_sdk: Open, service: Service, pictures: list[Path], request: Any
) -> None:
    sdk = open_sdk(service.ready["http"], service.ready["api_key"])
    name = "-".join(request.node.name.strip("]").split("[")[1:])
    files = [
        sdk.asset_library.create_from_file(str(path), Data_File(), f"{name}-{path.stem}").id for path in pictures[:2]
    ]

    created = sdk.fine_tuning.create(name=f"octoai-{name}", details=details(files))
    with service.client() as watching:
        watching.ended(created.id)
    tune = sdk.fine_tuning.get(created.id)

    assert tune.status == "succeeded"
    assert tune.succeeded_at is not None
    assert tune.result.number_of_available_assets == 2
    assert tune.result.output_assets == tune.output_lora_ids
    assert (tune.result.rejected_assets, tune.result.unready_assets) == ([], [])
    lora = sdk.asset_library.get(tune.output_lora_ids[0])
    assert (lora.asset.asset_type, lora.asset.name, lora.asset.status) == ("lora", tune.name, "ready")
    assert (lora.asset.data.engine, lora.asset.data.trigger_words) == (SD15, ["sks"])
    weights = httpx.get(lora.transfer_api.get_url).content
    assert len(weights) == lora.asset.size_bytes
    assert any("lora_down" in key for key in load(weights))
