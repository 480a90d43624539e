"""An HTTPS client outside the fleet: by name and with the CA verified, but without touching /etc/hosts."""

import secrets
import ssl
from collections.abc import Callable
from typing import Any

import httpx

from lib.fleet import Fleet
from lib.history import History, Outcome


def edge_client(fleet: Fleet, timeout_s: float = 10, host: str = "edge1", **options: Any) -> httpx.Client:
    """A client of the API through one edge.

    The connection goes to the edge's address while name, certificate check and Host header are those of the API.
    """
    name = f"api.{fleet.domain}"

    def with_name(request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = name

    return httpx.Client(
        base_url=f"https://{fleet.address(host)}",
        headers={"Host": name},
        verify=ssl.create_default_context(cafile=str(fleet.ca)),
        timeout=timeout_s,
        event_hooks={"request": [with_name]},
        **options,
    )


def register(client: httpx.Client) -> dict[str, str]:
    """Make a new user; what it signs in with."""
    account = {"email": f"{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe(18)}
    client.post("/v1/auth/register", json={**account, "name": "Test"}).raise_for_status()
    return account


def register_and_login(client: httpx.Client) -> dict[str, str]:
    """Make a new user and return the Authorization header of a fresh session."""
    return login(client, register(client))


def login(client: httpx.Client, account: dict[str, str]) -> dict[str, str]:
    """The Authorization header of a fresh session."""
    answer = client.post("/v1/auth/login", json=account).raise_for_status().json()
    return {"Authorization": f"{answer['token_type']} {answer['access_token']}"}


def artifact_writer(
    fleet: Fleet, user: dict[str, str], account: dict[str, str] | None = None
) -> Callable[[str], tuple[Outcome, str | None]]:
    """A write through the edge: one artifact. A refused request is a failure, a broken one is unknown.

    With its account it signs in anew when its session has run out, as any client does.
    """
    client = edge_client(fleet, timeout_s=10)
    user = dict(user)

    def write(key: str) -> tuple[Outcome, str | None]:
        try:
            body = {"name": key, "text": f"text of {key}"}
            answer = client.post("/v1/artifacts", json=body, headers=user)
            if answer.status_code == 401 and account:
                user.update(login(client, account))
                answer = client.post("/v1/artifacts", json=body, headers=user)
        except httpx.ConnectError:
            return "fail", None
        except httpx.HTTPError:
            return "unknown", None
        if answer.status_code == 201:
            return "ok", answer.json()["id"]
        return ("fail", None) if answer.status_code in (429, 503) else ("unknown", None)

    return write


def stored(fleet: Fleet, user: dict[str, str], history: History) -> set[str]:
    """Which of the acknowledged artifacts the API still knows."""
    with edge_client(fleet) as client:
        answers = {
            i: client.get(f"/v1/artifacts/{i}", headers=user).status_code for i in history.acknowledged().values()
        }
    assert set(answers.values()) <= {200, 404}, answers
    return {i for i, status in answers.items() if status == 200}
