"""Every route says who may call it, is documented, and answers with the headers that scripts rely on."""

import base64
import hashlib
import json
import re
import socket
from pathlib import Path

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client

from arches_api.__main__ import main
from arches_api.lib.access import ACCESS_ATTRIBUTE
from arches_api.lib.openapi import document

SNAPSHOT = Path(__file__).with_name("openapi.json")


def test_every_route_says_who_may_call_it_and_how_often(app: Quart) -> None:
    silent = [
        rule.rule
        for rule in app.url_map.iter_rules()
        if not hasattr(app.view_functions[rule.endpoint], ACCESS_ATTRIBUTE)
    ]
    assert silent == []


def test_the_document_is_the_reviewed_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RELEASE", "snapshot")
    assert main(["openapi"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(SNAPSHOT.read_text()), (
        f"the API's surface changed: if meant, RELEASE=snapshot python -m arches_api openapi > {SNAPSHOT.name}"
    )


def test_the_document_is_complete(app: Quart) -> None:
    api = document(app)
    operations = [operation for path in api["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) == 11
    for operation in operations:
        assert operation["summary"] and operation["tags"] and operation["responses"]
        if "requestBody" in operation:
            assert operation["requestBody"]["required"] is True
        for status, response in operation["responses"].items():
            assert response["description"]
            kinds = list(response.get("content", {}))
            assert kinds == (
                [] if status == "204" else ["application/json" if status < "400" else "application/problem+json"]
            )
    for reference in re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(api)):
        assert reference in api["components"]["schemas"]
    assert api["openapi"].startswith("3.1")
    for schema in ("Registration", "Login", "NewArtifact"):
        assert api["components"]["schemas"][schema]["additionalProperties"] is False


async def test_the_documentation_needs_nothing_from_elsewhere(client: Client) -> None:
    response = await client.get("/docs")
    page = await response.get_data(as_text=True)
    assert response.status_code == 200
    assert not re.search(r'(src|href)="?(https?:)?//', page) and "<script" not in page
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in response.headers["Content-Security-Policy"]
    assert "create_artifact" in page
    document_response = await client.get("/openapi.json")
    assert (await document_response.get_json())["info"]["version"] == "1.2.3-test"


@pytest.mark.parametrize("path", ["/health/live", "/nowhere", "/v1/me", "/docs"])
async def test_every_answer_says_its_id_and_its_host(client: Client, path: str) -> None:
    response = await client.get(path, headers={"X-Request-Id": "0123456789abcdef"})
    assert response.headers["X-Request-Id"] == "0123456789abcdef"
    assert response.headers["X-Served-By"] == socket.gethostname()


@pytest.mark.parametrize("insane", ["short", "x" * 65, 'a"quoted"id', "white space id", "ümlaut-umlaut"])
async def test_an_insane_request_id_is_replaced(client: Client, insane: str) -> None:
    response = await client.get("/health/live", headers={"X-Request-Id": insane})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])


async def test_an_unforeseen_error_is_a_problem_without_details(app: Quart) -> None:
    async def broken() -> None:
        raise RuntimeError("secret details")

    app.add_url_rule("/broken", "broken", broken)
    response = await app.test_client().get("/broken")
    assert response.status_code == 500
    assert response.content_type == "application/problem+json"
    assert "X-Request-Id" in response.headers
    assert "secret" not in await response.get_data(as_text=True)


async def test_metrics_count_by_rule_and_not_by_path(app: Quart, client: Client) -> None:
    await client.get("/v1/artifacts/b97cb179-87bc-46fa-90a9-c3908c9776da")
    await client.get("/made-up-1")
    await client.get("/made-up-2")
    registry = app.extensions["arches"].metrics.registry
    labels = {"method": "GET", "route": "/v1/artifacts/<uuid:artifact_id>", "status": "401"}
    assert registry.get_sample_value("arches_http_requests_total", labels) == 1
    nowhere = {"method": "GET", "route": "none", "status": "404"}
    assert registry.get_sample_value("arches_http_requests_total", nowhere) == 2
