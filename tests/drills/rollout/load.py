"""The client as a drill uses it: begun, marked, ended, judged, written down."""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from drills import results
from lib.client import edge_client
from lib.fleet import REPOSITORY, Fleet
from lib.waiting import wait_for

from .client import text_of
from .judge import Line, Verdict, acknowledged, judge, missing_or_doubled, read
from .plot import svg

# Requests go on for so long before and after what is done, in seconds.
BEFORE_S, AFTER_S = 8.0, 5.0
# So many of the acknowledged artifacts are read back with their content; all of them are looked for.
READ_BACK = 300


@dataclass(frozen=True)
class Stored:
    """Names of acknowledged artifacts that are not there, there more than once, or not as they were sent."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


class Load:
    """A client at work for as long as the `with` block lasts.

    Afterwards `verdict` and `stored` are there, and a JSON file and a plot of the run in results/<kind>.
    """

    def __init__(self, fleet: Fleet, name: str, folder: Path, kind: str = "rollout") -> None:
        self._fleet, self._name, self._record, self._out = fleet, name, folder / "record.jsonl", folder / "client.out"
        self._kind = kind
        self._marks: list[tuple[float, str]] = []
        self.lines: list[dict[str, Any]] = []
        self.stored: Stored
        self.verdict: Verdict

    def mark(self, word: str) -> None:
        """Something begins or ends now."""
        self._marks.append((time.monotonic(), word))

    def __enter__(self) -> "Load":
        command = [
            sys.executable, "-m", "drills.rollout.client", "--address", self._fleet.address("edge1"),
            "--name", f"api.{self._fleet.domain}", "--ca", str(self._fleet.ca), "--record", str(self._record),
        ]  # fmt: skip
        with self._out.open("w") as out:
            self._process = subprocess.Popen(command, cwd=REPOSITORY / "tests", stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_for("the client has calibrated itself", self._begun, timeout_s=60)
            self.steady(BEFORE_S)
        except BaseException:
            self._process.kill()
            raise
        self.mark("begins")
        return self

    def _begun(self) -> bool:
        assert self._process.poll() is None, self._out.read_text()
        return '"rate"' in self._out.read_text()

    def steady(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        wait_for("requests have gone on", lambda: time.monotonic() > ends, timeout_s=seconds + 5)

    def __exit__(self, kind: object, *_: object) -> None:
        self.mark("ends")
        try:
            if kind is None:
                self.steady(AFTER_S)
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
        finally:
            self._process.kill()
        self.lines, users = read(self._record)
        self.verdict = judge(self.lines)
        self.stored = Stored()
        if kind is None:
            seed = random.randrange(2**32)
            print(f"{self._name}: artifacts that are read back are drawn with seed {seed}")
            with edge_client(self._fleet) as client:
                self.stored = look_for(client, self.lines, users, random.Random(seed))
        self._write()

    def _write(self) -> None:
        began = json.loads(next(line for line in self._out.read_text().splitlines() if '"rate"' in line))
        found = {**began, **asdict(self.stored), **self.verdict.as_dict(), "slowest": slowest(self.lines)}
        file = results.keep(self._kind, self._name, found)
        verdict = self.verdict
        told = f"{self._name}: {verdict.failures} of {verdict.requests} failed, {verdict.retries} retried"
        file.with_suffix(".svg").write_text(svg(self.lines, self._marks, told))
        print(f"{told}; p99 {verdict.p99_ms} ms, worst {verdict.worst_ms} ms, at {began['rate']} per second")


def slowest(lines: Sequence[Line], count: int = 5) -> list[dict[str, Any]]:
    """The requests that took longest: what they were, seconds from the first until they were due, and they took."""
    began = min((line["due"] for line in lines), default=0.0)
    worst = sorted(lines, key=lambda line: line["due"] - line["done"])[:count]
    return [
        {
            **{name: line[name] for name in ("operation", "kind", "served_by", "retries")},
            "due_s": round(line["due"] - began, 2), "took_s": round(line["done"] - line["due"], 2),
        }
        for line in worst
    ]  # fmt: skip


def look_for(
    client: httpx.Client, lines: Sequence[Line], users: Sequence[dict[str, str]], chance: random.Random
) -> Stored:
    """Ask for every acknowledged artifact by its owner's list, and for the content of some.

    :raises httpx.HTTPStatusError: when the API does not give a list.
    """
    owners = [bearer(client, user) for user in users]
    stored = Counter(name for owner in owners for name in names(client, owner))
    there = [line for line in lines if acknowledged(line) and stored[line["key"]]]
    changed = []
    for line in chance.sample(there, min(len(there), READ_BACK)):
        answer = client.get(f"/v1/artifacts/{line['id']}", headers=owners[line["user"]])
        known = answer.json() if answer.status_code == 200 else {}
        if (known.get("name"), known.get("text")) != (line["key"], text_of(line["key"])):
            changed.append(line["key"])
    return Stored(*missing_or_doubled(lines, stored), changed)


def bearer(client: httpx.Client, user: dict[str, str]) -> dict[str, str]:
    """The Authorization header of a user. Raises httpx.HTTPStatusError."""
    token = client.post("/v1/auth/login", json=user).raise_for_status().json()["access_token"]
    return {"Authorization": f"Bearer {token}"}


def names(client: httpx.Client, owner: dict[str, str]) -> Iterator[str]:
    """Names of all artifacts of a user, page by page. Raises httpx.HTTPStatusError."""
    after: str | None = ""
    while after is not None:
        query: dict[str, str | int] = {"limit": 100, **({"after": after} if after else {})}
        page = client.get("/v1/artifacts", params=query, headers=owner).raise_for_status().json()
        yield from (item["name"] for item in page["items"])
        after = page["next"]
