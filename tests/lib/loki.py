"""Asking and feeding a Loki from a host that has a certificate of the environment: what tests and the bench share."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

TLS = "/etc/arches/tls"
# More lines than any test writes; Loki allows no more.
LIMIT = 20000

# Runs curl on a host with some text as its standard input and returns what it printed.
type Curl = Callable[[str, str], str]


@dataclass(frozen=True)
class Line:
    """One stored line: when (ns since 1970), its labels and structured metadata, the text."""

    at_ns: int
    labels: dict[str, str]
    text: str


def curl_command(*options: str) -> str:
    """A shell command that asks with the host's certificate and prints the answer and, below it, the status."""
    words = ["curl", "-sS", "--max-time", "30", "--cacert", f"{TLS}/ca.crt", "--cert", f"{TLS}/host.crt"]
    return " ".join([*words, "--key", f"{TLS}/host.key", "-w", r"'\n%{http_code}'", *options])


class Loki:
    """A Loki at an address, asked through a host.

    :param curl: runs a shell command on the host with a text as its standard input.
    :param url: such as ``https://ops1:3100``.
    """

    def __init__(self, curl: Curl, url: str) -> None:
        self._curl, self._url = curl, url

    def ask(self, path: str, **values: str) -> Any:
        """The JSON document below a path of the API. Raises AssertionError with Loki's words on any status but 200."""
        settings = "get\n" + "".join(f"data-urlencode = {json.dumps(f'{k}={v}')}\n" for k, v in values.items())
        body, _, status = self._curl(curl_command("--config", "-", f"{self._url}{path}"), settings).rpartition("\n")
        assert status == "200", f"{status}: {body}"
        return json.loads(body)

    def ready(self) -> bool:
        """Whether it takes and finds lines. One that does not listen yet is not ready: curl gives it status 000."""
        body, _, status = self._curl(f"{curl_command(f'{self._url}/ready')} || true", "").rpartition("\n")
        return status == "200" and body.strip() == "ready"

    def lines(self, query: str, since_s: int = 3600) -> list[Line]:
        """What a query finds, oldest first, at most LIMIT lines."""
        found = self.ask(
            "/loki/api/v1/query_range", query=query, since=f"{since_s}s", limit=str(LIMIT), direction="forward"
        )
        streams = found["data"]["result"]
        lines = [Line(int(at), s["stream"], text) for s in streams for at, text in s["values"]]
        return sorted(lines, key=lambda line: line.at_ns)

    def texts(self, query: str, since_s: int = 3600) -> list[str]:
        """The texts that a query finds, oldest first."""
        return [line.text for line in self.lines(query, since_s)]

    def count(self, query: str, since_s: int = 3600) -> int:
        """How many lines a query finds, however many; cheaper than the lines."""
        found = self.ask("/loki/api/v1/query", query=f"sum(count_over_time({query} [{since_s}s]))")["data"]["result"]
        return int(found[0]["value"][1]) if found else 0

    def labels(self) -> set[str]:
        """Names of all labels."""
        return set(self.ask("/loki/api/v1/labels", since="24h").get("data") or [])

    def push(self, texts: Sequence[str], at_s: float | None = None, **resource: str) -> tuple[int, str]:
        """Send lines as a collector does, a microsecond apart; status and Loki's words."""
        body = json.dumps(otlp(texts, time.time() if at_s is None else at_s, resource))
        options = ("-H", "content-type:application/json", "--data-binary", "@-", f"{self._url}/otlp/v1/logs")
        words, _, status = self._curl(curl_command(*options), body).rpartition("\n")
        return int(status), words


def otlp(texts: Sequence[str], at_s: float, resource: dict[str, str]) -> dict[str, Any]:
    """Lines of one resource as OTLP in JSON."""
    first = int(at_s * 1e6) * 1000
    records = [{"timeUnixNano": str(first + n * 1000), "body": {"stringValue": t}} for n, t in enumerate(texts)]
    attributes = [{"key": name, "value": {"stringValue": value}} for name, value in resource.items()]
    return {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": records}]}]}
