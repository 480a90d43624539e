"""Nothing differs from what git says, and the API tells its story through the edge (a second run: test_3_faults.py)."""

import httpx
import pytest

from lib.fleet import Fleet
from lib.waiting import wait_for


@pytest.mark.long
def test_check_mode_on_a_converged_fleet_finds_nothing(healthy: Fleet) -> None:
    result = healthy.playbook("site.yml", "--check", "--diff")
    assert result.changed == 0, result.output[-4000:]


@pytest.mark.long
def test_one_host_can_be_converged_alone(healthy: Fleet) -> None:
    result = healthy.playbook("site.yml", "--limit", "api2")
    assert set(result.recap) <= {"api2", "localhost"}, result.recap
    assert result.changed == 0, result.output[-4000:]


def test_a_user_registers_stores_a_text_and_finds_it_by_meaning(api: httpx.Client, user: dict[str, str]) -> None:
    texts = {
        "menu": "Tonight we serve grilled salmon with lemon butter and fresh dill.",
        "finance": "Quarterly revenue grew by eight percent while operating costs fell.",
        "garden": "Roses should be pruned in late winter before new growth begins.",
    }
    ids = {}
    for name, text in texts.items():
        answer = api.post("/v1/artifacts", json={"name": name, "text": text}, headers=user)
        assert answer.status_code == 201, answer.text
        ids[name] = answer.json()["id"]
    assert api.get(f"/v1/artifacts/{ids['menu']}", headers=user).json()["name"] == "menu"

    def best() -> str:
        found = api.get("/v1/artifacts/search", params={"q": "what fish is for dinner?", "limit": 1}, headers=user)
        items = found.raise_for_status().json()["items"]
        return str(items[0]["name"]) if items else ""

    wait_for("search by meaning finds the menu (no word in common)", lambda: best() == "menu", timeout_s=20)


def test_every_answer_names_its_request_and_its_host(api: httpx.Client, fleet: Fleet) -> None:
    for path in ("/health/live", "/v1/me", "/no/such/page"):
        answer = api.get(path)
        assert answer.headers["x-request-id"], path
        assert answer.headers["x-served-by"] in fleet.groups["api"], path


def test_the_edge_spreads_requests_over_all_api_hosts(api: httpx.Client, fleet: Fleet) -> None:
    served = {api.get("/health/live").headers["x-served-by"] for _ in range(30)}
    assert served == set(fleet.groups["api"])


def test_plain_http_is_sent_to_https(fleet: Fleet) -> None:
    answer = httpx.get(f"http://{fleet.address('edge1')}/v1/me", headers={"Host": f"api.{fleet.domain}"})
    assert answer.status_code in (301, 308)
    assert answer.headers["location"] == f"https://api.{fleet.domain}/v1/me"


def test_a_client_without_our_ca_refuses_the_edge(fleet: Fleet) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{fleet.address('edge1')}/health/live")


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'{"name": "a\\u0000b", "text": "x"}', b'{"name":' + b"[" * 100_000, b'{"nme": "typo"}']
)
def test_a_bad_body_is_the_clients_fault(api: httpx.Client, user: dict[str, str], body: bytes) -> None:
    answer = api.post("/v1/artifacts", content=body, headers={**user, "Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_a_body_over_the_limit_is_refused_with_a_problem(api: httpx.Client, user: dict[str, str]) -> None:
    answer = api.post("/v1/artifacts", json={"name": "big", "text": "x" * 3_000_000}, headers=user)
    assert answer.status_code == 413
    assert answer.headers["content-type"].startswith("application/problem+json")
