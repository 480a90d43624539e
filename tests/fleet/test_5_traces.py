"""A request's trace is found by its id, from the answer, from a log line, and back."""

import os
import secrets
import subprocess

import httpx

from lib.fleet import REPOSITORY, Fleet
from lib.waiting import wait_for


def ask(command: str, fleet: Fleet, **environ: str) -> str:
    """What `make trace` or `make logs` prints; empty when nothing was found."""
    done = subprocess.run(
        [REPOSITORY / "ansible" / "bin" / command, fleet.inventory], env={**os.environ, **environ},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode == 0 else ""


def sampled() -> tuple[str, dict[str, str]]:
    """A trace id of the client's own, and the header that asks for its trace to be kept."""
    trace = secrets.token_hex(16)
    return trace, {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}


def test_a_clients_own_trace_is_kept_and_goes_down_to_the_statements(
    fleet: Fleet, api: httpx.Client, user: dict[str, str]
) -> None:
    trace, header = sampled()
    api.get("/v1/me", headers={**user, **header}).raise_for_status()
    shown = wait_for("the trace is found", lambda: ask("trace", fleet, ID=trace), timeout_s=60, interval_s=1)
    assert "GET /v1/me" in shown
    assert "arches-api@api" in shown
    assert "SELECT" in shown


def test_from_a_log_line_to_its_trace_and_back(fleet: Fleet, api: httpx.Client, user: dict[str, str]) -> None:
    trace, header = sampled()
    answer = api.get("/v1/me", headers={**user, **header})
    request = answer.headers["x-request-id"]
    query = f'{{host=~".+"}} | request_id="{request}"'

    def both() -> str:
        lines = ask("logs", fleet, QUERY=query, SINCE="5m")
        return lines if "edge1" in lines and "api" in lines else ""

    wait_for("the lines of edge and API", both, timeout_s=60, interval_s=1)
    assert ask("logs", fleet, QUERY=f'{{host=~".+"}} | trace_id="{trace}"', SINCE="5m")
    shown = wait_for("the trace is found", lambda: ask("trace", fleet, ID=trace), timeout_s=60, interval_s=1)
    assert request in shown


def test_without_a_clients_own_the_trace_has_the_requests_id(fleet: Fleet, api: httpx.Client) -> None:
    request = api.get("/v1/me").headers["x-request-id"]
    query = f'{{host=~"api.*"}} | trace_id="{request}"'
    wait_for("the API's line", lambda: ask("logs", fleet, QUERY=query, SINCE="5m"), timeout_s=60, interval_s=1)


def test_a_trace_that_is_not_there_is_explained(fleet: Fleet) -> None:
    for wrong, says in (("0" * 31 + "1", "there is no trace"), ("xyz", "32 hex")):
        done = subprocess.run(
            [REPOSITORY / "ansible" / "bin" / "trace", fleet.inventory], env={**os.environ, "ID": wrong},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode != 0
        assert says in done.stderr
