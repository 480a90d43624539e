"""Write and read through every edge as a client would, again and again until it works.

    - name: Write and read through every edge
      edge_probe:
        addresses: {edge1: 203.0.113.11}
        port: 443
        name: api.archesai.example
        ca_certificate: "{{ certificates_ca_certificate }}"   # trusted besides the system's own authorities
        timeout_s: 60
      delegate_to: localhost

With `served_by` (a host's name) and `release` it asks instead until that host has answered through every edge
`ANSWERS` times, each time with that release: the gate that a host passes which took a release into service.

Otherwise each edge is given a new user (an address that nobody reads), a session, and an artifact that is written,
read back and removed. The user stays. Safe to repeat.

Result: edges (for each: first_write_s, seconds until a write was acknowledged, and read_s, until it was read back).
"""

from __future__ import annotations

import secrets
import ssl
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.json_https import NoAnswer, Response, ask, in_parallel

PAUSE_S = 0.3
# Of the host that is asked for, one after the other.
ANSWERS = 5
# One request may wait for a leader this long; then another one is more likely to be answered.
ANSWER_S = 10.0


class Edge(t.NamedTuple):
    """One edge: the address to connect to and the URL that it serves."""

    address: str
    url: str
    context: ssl.SSLContext

    def expect(self, status: int, method: str, path: str, body: t.Any = None, token: str = "") -> t.Any:
        """The body of an answer with this status. Raises NoAnswer for any other, and for none."""
        answer: Response = ask(
            self.url + path, context=self.context, method=method, body=body, bearer=token, address=self.address,
            timeout=ANSWER_S,
        )  # fmt: skip
        if answer.status != status:
            raise NoAnswer(self.url + path, f"{answer.status} instead of {status}: {answer.body}")
        return answer.body


def probe(edge: Edge, domain: str) -> tuple[float, float]:
    """Monotonic times of the acknowledged write and of reading it back. Raises NoAnswer."""
    account = {"email": f"probe-{secrets.token_hex(8)}@{domain}", "password": secrets.token_urlsafe(18)}
    edge.expect(201, "POST", "/v1/auth/register", {**account, "name": "Probe"})
    token = edge.expect(200, "POST", "/v1/auth/login", account)["access_token"]
    text = f"written to see that it is kept: {secrets.token_hex(8)}"
    made = edge.expect(201, "POST", "/v1/artifacts", {"name": "probe", "text": text}, token)["id"]
    written = time.monotonic()
    read = edge.expect(200, "GET", f"/v1/artifacts/{made}", token=token)
    if read.get("text") != text:
        raise NoAnswer(edge.url, f"artifact {made} was read back with another text")
    was_read = time.monotonic()
    edge.expect(204, "DELETE", f"/v1/artifacts/{made}", token=token)
    return written, was_read


def gate(edge: Edge, host: str, release: str, seconds: float) -> dict[str, float]:
    """Ask until a host has answered often enough with this release. Raises NoAnswer when it answers otherwise."""
    began, answers = time.monotonic(), 0
    while answers < ANSWERS:
        answer = ask(f"{edge.url}/health/ready", context=edge.context, address=edge.address, timeout=ANSWER_S)
        if time.monotonic() > began + seconds:
            raise NoAnswer(edge.url, f"{host} is given no requests")
        if answer.headers.get("x-served-by") != host:
            continue
        found = answer.body.get("release") if isinstance(answer.body, dict) else None
        if (answer.status, found) != (200, release):
            raise NoAnswer(edge.url, f"{host} answered {answer.status}, release {found} instead of {release}")
        answers += 1
    return {"passed_s": round(time.monotonic() - began, 2)}


def until_it_works(edge: Edge, domain: str, seconds: float) -> dict[str, float]:
    """Probe again and again. Raises NoAnswer with the last reason after `seconds`."""
    began = time.monotonic()
    while True:
        try:
            written, was_read = probe(edge, domain)
        except NoAnswer:
            if time.monotonic() > began + seconds:
                raise
            time.sleep(PAUSE_S)
            continue
        return {"first_write_s": round(written - began, 2), "read_s": round(was_read - began, 2)}


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "dict", "required": True},
            "port": {"type": "int", "required": True},
            "name": {"type": "str", "required": True},
            "ca_certificate": {"type": "str", "required": True},
            "timeout_s": {"type": "int", "default": 60},
            "served_by": {"type": "str"},
            "release": {"type": "str"},
        },
        required_together=[("served_by", "release")],
    )
    params = module.params
    context = ssl.create_default_context()
    context.load_verify_locations(cadata=params["ca_certificate"])
    url = f"https://{params['name']}:{params['port']}"
    domain = params["name"].partition(".")[2]

    def asked(address: str) -> dict[str, float]:
        edge = Edge(address, url, context)
        if params["served_by"]:
            return gate(edge, params["served_by"], params["release"], params["timeout_s"])
        return until_it_works(edge, domain, params["timeout_s"])

    names = {address: name for name, address in params["addresses"].items()}
    said = {names[address]: answer for address, answer in in_parallel(asked, names).items()}
    silent = [f"{name}: {answer}" for name, answer in said.items() if isinstance(answer, NoAnswer)]
    if silent and params["served_by"]:
        module.fail_json(msg=f"The gate at the edge stays closed: {'; '.join(silent)}.")
    if silent:
        module.fail_json(
            msg=f"No write and read through the edge within {params['timeout_s']} s: {'; '.join(silent)}. "
            f"See `make status`; started again, the playbook only repeats this proof."
        )
    module.exit_json(changed=False, edges=said)


if __name__ == "__main__":
    main()
