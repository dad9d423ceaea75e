"""The OpenAPI document says what the shim does: of our own services, and of a made-up one with every kind of field."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

import pytest
from openapi_spec_validator import validate

from gateway.http import openapi, pages
from gateway.http.bindings import bindings
from gateway.http.operations import method_comment
from tests.servers.front import SERVICES, front
from tests.servers.kinds import KIND_SERVICE


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(SERVICES, "1.2.3", serves_objects=True)


@pytest.fixture(scope="module")
def schemas(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]
    return found


def nullable(schema: dict[str, Any]) -> set[str]:
    """The keys of an object that may be null."""

    def takes_null(one: dict[str, Any]) -> bool:
        kinds = one.get("type", [])
        return (
            kinds == "null"
            or (isinstance(kinds, list) and "null" in kinds)
            or any(map(takes_null, one.get("anyOf", [])))
        )

    return {name for name, one in schema["properties"].items() if takes_null(one)}


@pytest.mark.parametrize("services", [SERVICES, [KIND_SERVICE], []], ids=["ours", "every kind", "none"])
def test_document_is_valid_openapi_with_a_name_of_its_own_for_each_operation(services: Any) -> None:
    document = openapi.document(services, "1", serves_objects=True)

    validate(document)

    names = [one["operationId"] for item in document["paths"].values() for one in item.values()]
    assert len(set(names)) == len(names)


def test_every_rpc_is_there_under_its_verb_and_path(document: dict[str, Any]) -> None:
    described = {
        operation["x-grpc-method"]
        for item in document["paths"].values()
        for operation in item.values()
        if "x-grpc-method" in operation
    }

    assert described == {binding.rpc.removeprefix("/") for binding in bindings(SERVICES)}
    assert document["paths"]["/v1/tune/{id}/cancel"]["post"]["operationId"] == "CancelTune"


def test_every_operation_parameter_and_key_says_what_it_is(document: dict[str, Any]) -> None:
    silent = [one["operationId"] for item in document["paths"].values() for one in item.values() if not one["summary"]]
    keys = [
        f"{name}.{key}"
        for name, schema in document["components"]["schemas"].items()
        for key, value in schema.get("properties", {}).items()
        if not value.get("description") and not {"const", "enum"} & value.keys()  # a union's tag
    ]

    assert (silent, keys) == ([], ["InvalidRequest.detail"])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Tune", {"result", "succeeded_at", "deleted_at", "estimate"}),
        ("TuneResult", {"number_of_available_assets"}),
        ("LoraTune", {"resize_images", "seed", "hyperparameters"}),
        ("LoraTuneCheckpoint", {"engine", "name"}),
        ("LoraTuneFile", {"caption"}),
        ("Asset", {"status_info", "file_structure", "hf_repo", "url"}),
        ("LoraData", {"data_type", "file_format", "checkpoint"}),
        ("GetAssetResponse", set()),
        ("StepMetrics", {"loss", "learning_rate", "steps_per_second"}),  # NaN is null
    ],
)
def test_every_key_of_an_answer_is_required_and_these_may_be_null(
    schemas: dict[str, Any], name: str, wanted: set[str]
) -> None:
    schema = schemas[name]

    assert set(schema["required"]) == schema["properties"].keys()
    assert nullable(schema) == wanted


def test_a_request_wants_what_a_rule_wants_and_takes_null_for_the_rest(schemas: dict[str, Any]) -> None:
    request, details = schemas["CreateTuneRequest"], schemas["LoraTuneInput"]

    assert request["required"] == ["name", "details"]
    assert nullable(request) == request["properties"].keys() - {"name", "details"}
    assert details["required"] == ["base_checkpoint", "files", "steps", "trigger_words"]
    assert schemas["CreateAssetRequest"]["required"] == ["asset_type", "name", "data"]


def test_rules_are_keywords_and_what_has_no_keyword_is_told_all_the_same(schemas: dict[str, Any]) -> None:
    request, hyperparameters = schemas["CreateTuneRequest"]["properties"], schemas["HyperparametersInput"]

    name, priority, metadata = request["name"], request["priority"], request["metadata"]
    assert (name["minLength"], name["maxLength"]) == (1, 128)
    assert re.search(name["pattern"], "a name") is not None
    assert re.search(name["pattern"], "a/name") is None
    assert name["x-rules"] == ["must not be '.' or '..'"]
    assert (priority["minimum"], priority["maximum"]) == (-100, 100)
    assert (metadata["maxProperties"], metadata["propertyNames"]["maxLength"]) == (16, 64)
    assert hyperparameters["properties"]["alpha"] == {
        "type": ["number", "null"],
        "format": "double",
        "exclusiveMinimum": 0,
        "maximum": 1024,
        "description": hyperparameters["properties"]["alpha"]["description"],
    }
    assert hyperparameters["additionalProperties"] is False
    assert "additionalProperties" not in schemas["CreateTuneRequest"]


def test_a_tagged_union_is_flat_and_its_tag_a_constant(schemas: dict[str, Any]) -> None:
    data, answered = schemas["AssetDataInput"], schemas["TransferApi"]

    assert data["discriminator"]["propertyName"] == "asset_type"
    assert data["discriminator"]["mapping"]["vae"] == "#/components/schemas/VaeDataInput"
    assert schemas["VaeDataInput"]["properties"]["asset_type"] == {"type": "string", "const": "vae"}
    assert set(answered["discriminator"]["mapping"]) == {"presigned-url", "none"}
    assert schemas["LoraTuneInput"]["properties"]["tune_type"] == {"enum": ["lora_tune", None]}  # the only arm


def test_enums_are_words_without_the_one_that_stands_for_unset(schemas: dict[str, Any]) -> None:
    status = schemas["TuneStatus"]

    assert status["enum"] == ["pending", "running", "succeeded", "cancelled", "failed"]
    assert "- `running`: A trainer works on it" in status["description"]


def test_query_headers_and_body_are_where_the_shim_reads_them(document: dict[str, Any]) -> None:
    create = document["paths"]["/v1/tune"]["post"]
    listing = document["paths"]["/v1/assets"]["get"]
    watch = document["paths"]["/v1/tune/{id}/events"]["get"]

    def places(operation: dict[str, Any]) -> set[tuple[str, str]]:
        return {(one["in"], one["name"]) for one in operation["parameters"] if "$ref" not in one}

    assert places(create) == {("query", "validate_only"), ("header", "Idempotency-Key")}
    assert places(watch) == {("path", "id"), ("query", "after_id"), ("header", "Last-Event-ID")}
    assert ("query", "get_preview_urls") in places(listing)
    kinds = next(one for one in listing["parameters"] if one.get("name") == "asset_type")
    assert (kinds["schema"]["type"], kinds["explode"]) == ("array", True)
    assert "requestBody" not in watch
    assert "id" not in document["components"]["schemas"]["CompleteUploadRequest"]["properties"]
    assert document["paths"]["/v1/tune/{id}/cancel"]["post"]["requestBody"]["required"] is False


def test_statuses_come_from_comments_bodies_and_the_key(document: dict[str, Any]) -> None:
    paths = document["paths"]

    create, found = paths["/v1/tune"]["post"]["responses"], paths["/v1/tune/{id}"]["get"]["responses"]
    assert {"201", "401", "403", "408", "409", "413", "415", "422", "429", "431", "500", "503"} <= create.keys()
    assert "200" not in create
    assert found["404"]["description"] == "No such tune, deleted, or not yours."
    assert "415" not in found
    assert "tune:read" in found["403"]["description"]
    assert create["422"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/InvalidRequest"}
    assert found["404"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Refusal"}
    assert "larger" in paths["/v1/assets/{id}/complete-upload"]["post"]["responses"]["413"]["description"]


def test_a_stream_has_both_media_types_and_the_answer_that_ends_a_resumption(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/tune/{id}/events"]["get"]["responses"]

    assert responses["200"]["content"].keys() == {"text/event-stream", "application/x-ndjson"}
    assert responses["200"]["content"]["application/x-ndjson"]["x-line-schema"] == {
        "$ref": "#/components/schemas/TuneEvent"
    }
    assert "204" in responses


def test_all_want_a_key_but_those_that_are_open(document: dict[str, Any]) -> None:
    open_to_all = {
        path for path, item in document["paths"].items() for operation in item.values() if not operation["security"]
    }

    assert open_to_all == {"/health", "/openapi.json", "/v1/objects/{key}"}
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_objects_that_their_store_serves_are_only_uploaded_here() -> None:
    document = openapi.document(SERVICES, "1", serves_objects=False)

    assert document["paths"]["/v1/objects/{key}"].keys() == {"put"}


def test_comment_is_taken_apart_into_prose_and_statuses() -> None:
    said = method_comment("tunesmith.v1.TuneService.CreateTune")

    assert said.text.startswith("Accepts a tune and returns it once it is durable.\n\nSafe to retry")
    assert [code.name for code in said.codes] == ["INVALID_ARGUMENT", "ALREADY_EXISTS", "RESOURCE_EXHAUSTED"]


async def test_document_and_page_are_open_to_all_and_cached_by_their_tag(document: dict[str, Any]) -> None:
    async with front(extra_routes=[openapi.route(document), *pages.routes()]) as door:
        for path in ("/openapi.json", "/", "/docs", "/page/dashboard.js", "/page/docs.js", "/page/house.css"):
            first = await door.http.get(path, headers={"authorization": ""})
            again = await door.http.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
            other = await door.http.get(path, headers={"if-none-match": '"other"'})
            head = await door.http.head(path)

            assert (first.status_code, again.status_code, other.status_code) == (200, 304, 200)
            assert (again.content, head.content) == (b"", b"")
            assert head.headers["content-length"] == str(len(first.content))
        assert (await door.http.get("/openapi.json")).json() == document


@pytest.mark.parametrize(
    ("asked", "location", "path"),
    [
        ("/docs/", "../docs", "/docs"),
        ("/docs//", "../../docs", "/docs"),
        ("//docs/", "../docs", "/docs"),
        ("//", "../", "/"),
        ("///", "../../", "/"),
    ],
)
async def test_page_with_a_slash_leads_to_the_page_from_where_its_links_lead_right(
    asked: str, location: str, path: str
) -> None:
    async with front(extra_routes=pages.routes()) as door:
        answer = await door.http.get(f"http://gateway{asked}")
        page = urljoin(f"http://gateway{asked}", answer.headers["location"])
        found = await door.http.get(page)
        links = re.findall(r'(?:href|src)="((?:page/|docs|\./)[^"]*)"', found.text)
        loaded = [await door.http.get(urljoin(page, link)) for link in links]

    assert (answer.status_code, answer.headers["location"]) == (308, location)
    assert page.removeprefix("http://gateway").replace("//", "/") == path
    assert urljoin(f"https://proxy/below{asked}", answer.headers["location"]).endswith(path)
    assert len(links) >= 4
    assert [each.status_code for each in (found, *loaded)] == [200] * (len(links) + 1)


async def test_pages_may_load_nothing_from_elsewhere_and_make_no_markup_of_text() -> None:
    async with front(extra_routes=pages.routes()) as door:
        shown = [await door.http.get(path) for path in ("/", "/docs")]
        routes: list[Any] = pages.routes()
        loaded = [await door.http.get(route.path) for route in routes]

    policies = {page.headers["content-security-policy"] for page in loaded}
    assert len(policies) == 1
    assert {page.headers["content-security-policy"] for page in shown} == policies
    assert policies.pop().startswith("default-src 'none'; script-src 'self';")
    for page in loaded:
        assert "unsafe" not in page.headers["content-security-policy"]
        assert "://" not in page.text.replace("http://www.w3.org/2000/svg", "")  # a name, not a place
        assert "innerHTML" not in page.text
        assert " style=" not in page.text
