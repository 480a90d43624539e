"""Artifacts: stored, listed, found by meaning, and never seen by others."""

from collections.abc import Callable

import httpx
import pytest
from api_support.server import Person, Server, assert_problem

from lib.waiting import wait_for

type NewPerson = Callable[[], Person]


def test_the_curl_story(server: Server, person: Person) -> None:
    person.store("weather", "Today is a sunny day")
    stored = person.store("dog", "That is a happy dog")
    assert stored["embedded"] is True
    found = person.search("happy dogs", limit=1)
    assert found["mode"] == "semantic"
    assert [item["id"] for item in found["items"]] == [stored["id"]]
    assert found["items"][0]["name"] == "dog" and 0 < found["items"][0]["score"] <= 1


def test_an_artifact_is_read_where_location_says(person: Person) -> None:
    answer = person.http.post("/v1/artifacts", json={"name": " Straße ✓ ", "text": "Ünïcödé\n\ttext 🦊"})
    read = person.http.get(answer.headers["Location"])
    assert read.json() == answer.json()
    assert read.json()["name"] == "Straße ✓" and read.json()["text"] == "Ünïcödé\n\ttext 🦊"


def test_a_deleted_artifact_is_gone(person: Person) -> None:
    stored = person.store("short-lived", "text")
    path = f"/v1/artifacts/{stored['id']}"
    assert person.http.delete(path).status_code == 204
    assert_problem(person.http.get(path), 404)
    assert_problem(person.http.delete(path), 404)
    assert person.search("short-lived text")["items"] == []


def test_the_list_is_complete_and_newest_first_page_by_page(person: Person) -> None:
    names = [f"artifact {number}" for number in range(7)]
    for name in names:
        person.store(name, "text")
    seen: list[str] = []
    after: dict[str, str] = {}
    sizes = []
    while True:
        page = person.http.get("/v1/artifacts", params={"limit": "3", **after}).json()
        sizes.append(len(page["items"]))
        seen += [item["name"] for item in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
        person.store("newcomer", "arrives between two pages and is not seen twice")
    assert sizes == [3, 3, 1]
    assert seen == names[::-1]


def test_others_see_nothing(new_person: NewPerson) -> None:
    owner, other = new_person(), new_person()
    stored = owner.store("diary", "my secret plan")
    path = f"/v1/artifacts/{stored['id']}"
    assert_problem(other.http.get(path), 404)
    assert_problem(other.http.delete(path), 404)
    assert other.names() == []
    assert other.search("secret plan")["items"] == []
    assert owner.http.get(path).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"{number:x}" for number in range(36_000)),
        " ".join(f"a{number}.example.org/path/{number}?q={number}" for number in range(5000)),
        " ".join(f"x{number}-y{number}-z{number}" for number in range(9000)),
        "x" * 200_000,
        "🦊" * 200_000,
        "'\\;--\"%_" * 10_000,
        "\ufffe\uffff\U0010ffff\u202e\x01\x7f",
    ],
    ids=["many words", "many addresses", "many hyphens", "one word", "emoji", "quotes", "odd characters"],
)
def test_any_text_can_be_stored_and_searched(person: Person, text: str) -> None:
    stored = person.store("any", text)
    assert person.http.get(f"/v1/artifacts/{stored['id']}").json()["text"] == text
    assert person.search(text[:100])["mode"] == "semantic"


def test_a_text_that_is_too_long_is_refused(person: Person) -> None:
    assert_problem(person.http.post("/v1/artifacts", json={"name": "long", "text": "x" * 200_001}), 422)


def test_a_body_of_unknown_length_stops_at_the_limit(person: Person) -> None:
    sent = 0

    def endless() -> object:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield b"x" * 65536

    try:
        answer = person.http.post("/v1/artifacts", content=endless(), headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
        assert_problem(answer, 413)
    except httpx.WriteError:
        pass  # the server answered and left before it had read everything
    assert sent < 20 * 1024**2


def test_head_options_and_slashes(server: Server) -> None:
    assert httpx.head(f"{server.url}/health/live").status_code == 200
    assert "GET" in httpx.options(f"{server.url}/health/live").headers["Allow"]
    assert_problem(httpx.get(f"{server.url}/v1//me"), 404)


def test_metrics_have_their_own_port(server: Server, person: Person) -> None:
    person.store("counted", "text")
    text = server.metrics()
    assert 'arches_http_requests_total{method="POST",route="/v1/artifacts",status="201"}' in text
    assert 'arches_build_info{release="1.2.3-test"} 1.0' in text
    assert "arches_database_connections " in text
    assert_problem(httpx.get(f"{server.url}/metrics"), 404)


def test_each_request_is_one_log_line_without_secrets(server: Server, person: Person) -> None:
    person.http.get("/v1/artifacts/search?q=very-private-question", headers={"X-Request-Id": "find-this-line"})

    def lines_of_it() -> list[str]:
        return [line for line in server.output().splitlines() if "find-this-line" in line]

    # The line is written once the answer is out.
    lines = wait_for("the request's line in the log", lines_of_it, timeout_s=10)
    assert len(lines) == 1
    assert '"route":"/v1/artifacts/search"' in lines[0] and person.account["id"] in lines[0]
    for secret in ("very-private-question", person.password, person.tokens["access_token"]):
        assert secret not in server.output()
