"""An HTTPS client outside the fleet: by name and with the CA verified, but without touching /etc/hosts."""

import secrets
import ssl
from typing import Any

import httpx

from lib.fleet import Fleet


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


def register_and_login(client: httpx.Client) -> dict[str, str]:
    """Make a new user and return the Authorization header of a fresh session."""
    account = {"email": f"{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe(18)}
    client.post("/v1/auth/register", json={**account, "name": "Test"}).raise_for_status()
    answer = client.post("/v1/auth/login", json=account).raise_for_status().json()
    return {"Authorization": f"{answer['token_type']} {answer['access_token']}"}
