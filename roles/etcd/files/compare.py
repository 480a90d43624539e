#!/usr/bin/python3
"""Say whether this host's etcd member has other data than most of the others: arches-etcd-compare FILE

Members apply one log, so they have the same data at the same revision; one that does not never notices. Each is asked
for the hash of what it has, as of the newest revision that all of them have (etcd's HashKV), and FILE, of the node
exporter, says 1 where this member is one of those that are not most, 0 where it is. FILE is not there when there was
nothing to compare: this member or all others do not answer, which etcd's own figures tell. Settings are those of etcd,
from the environment.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 5

Ask = Callable[[str, str, Mapping[str, Any]], Any]


class Silent(Exception):
    """A member does not answer; the message is one sentence."""


def asking(context: ssl.SSLContext) -> Ask:
    """A function that asks a member at a URL, with these certificates; it raises Silent."""

    def ask(url: str, path: str, body: Mapping[str, Any]) -> Any:
        try:
            # What etcd says of its members is https, by the template.
            with urllib.request.urlopen(url + path, json.dumps(body).encode(), TIMEOUT_S, context=context) as answer:  # noqa: S310
                return json.load(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Silent(f"{url}{path}: {error}") from None

    return ask


def hashes(own: str, ask: Ask) -> dict[str, tuple[str, str]]:
    """What each member that answers has, by its URL: since which revision, and its hash. Raises Silent for `own`."""
    members = ask(own, "/v3/cluster/member/list", {})["members"]
    urls = [own, *(url for member in members for url in member.get("clientURLs", []) if url != own)]
    revisions = of_each(urls, lambda url: int(ask(url, "/v3/maintenance/status", {})["header"]["revision"]))
    body = {"revision": min(revisions.values(), default=0)}
    said = of_each(revisions, lambda url: ask(url, "/v3/maintenance/hash", body))
    if own not in said:
        raise Silent(f"{own} does not answer")
    return {url: (str(answer.get("compact_revision", "0")), str(answer["hash"])) for url, answer in said.items()}


def of_each[T](urls: Iterable[str], ask: Callable[[str], T]) -> dict[str, T]:
    """The answers of those that give one."""
    answers = {}
    for url in urls:
        with contextlib.suppress(Silent):
            answers[url] = ask(url)
    return answers


def differs(own: str, found: Mapping[str, tuple[str, str]]) -> bool | None:
    """Whether a member's hash is not that of most (of another, where no two agree); None: there is no other.

    Only what reaches back equally far can be compared: members forget old changes at nearly the same time.
    """
    since = found[own][0]
    comparable = [one for one in found.values() if one[0] == since]
    if len(comparable) < 2:
        return None
    (most, times), *others = Counter(comparable).most_common()
    return bool(others) and (found[own] != most or times == 1)


def main(file: Path) -> None:
    """Compare once. Raises KeyError for a setting that is not there."""
    context = ssl.create_default_context(cafile=os.environ["ETCD_TRUSTED_CA_FILE"])
    context.load_cert_chain(os.environ["ETCD_CERT_FILE"], os.environ["ETCD_KEY_FILE"])
    own = os.environ["ETCD_ADVERTISE_CLIENT_URLS"]
    try:
        answer = differs(own, hashes(own, asking(context)))
    except Silent as reason:
        print(reason)
        answer = None
    if answer is None:
        file.unlink(missing_ok=True)
        return
    new = file.with_suffix(".new")
    new.write_text(f"arches_etcd_member_differs {int(answer)}\n")
    new.chmod(0o644)
    new.rename(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
