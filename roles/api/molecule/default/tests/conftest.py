"""Fixtures of the API's scenario."""

from collections.abc import Iterator

import httpx
import pytest
from testinfra.host import Host

from lib.api_host import INSTANCES, property_of
from lib.waiting import wait_for


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    return str(host.ansible.get_variables()["ansible_host"])


@pytest.fixture
def api(host: Host, address: str) -> Iterator[httpx.Client]:
    """A client that opens a connection for every request, as the edge does."""
    wait_for("the API runs", lambda: all(property_of(host, unit, "SubState") == "running" for unit in INSTANCES), 60)
    headers = {"Connection": "close"}
    with httpx.Client(base_url=f"http://{address}:8080", headers=headers, timeout=30) as client:
        yield client
