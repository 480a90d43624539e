"""Variants of the release that drills roll out: each fits the sources of today, and does what it is named after."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.fleet import REPOSITORY
from lib.variants import LEVEL, VARIANTS, change, copy_of_sources

# What a variant answers to requests that came through the edge, and to others: how many errors, and the longest time in
# seconds. Nothing is there under this path, so that a good answer is 404.
ASK = """
import asyncio, json, time
from api_support.environment import settings_with
from arches_api.app import create_app
from arches_api.lib.logs import configure_logging

configure_logging("critical")

async def ask(headers, count):
    client, statuses, longest = create_app(settings_with()).test_client(), [], 0.0
    for _ in range(count):
        began = time.monotonic()
        statuses.append((await client.get("/v1/nothing", headers=headers)).status_code)
        longest = max(longest, time.monotonic() - began)
    return [sum(status >= 500 for status in statuses), longest]

print(json.dumps([asyncio.run(ask({{"X-Forwarded-For": "192.0.2.1"}}, {count})), asyncio.run(ask({{}}, {others}))]))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    copy_of_sources(tmp_path)
    return tmp_path


def python(checkout: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the package of a checkout."""
    path = os.pathsep.join([str(checkout / "app/src"), str(REPOSITORY / "app/tests")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def asked(checkout: Path, count: int, others: int) -> tuple[int, float, int, float]:
    """Errors and longest time of requests through the edge, and of others."""
    said = python(checkout, ASK.format(count=count, others=others))
    assert said.returncode == 0, said.stderr[-2000:]
    (edge, edge_s), (own, own_s) = json.loads(said.stdout.splitlines()[-1])
    return edge, edge_s, own, own_s


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_fits_the_sources_and_is_another_one_each_time(checkout: Path, name: str) -> None:
    before = {file: (checkout / file).read_text() for file, old, _ in VARIANTS[name] if old}
    change(checkout, name)
    files = [checkout / file for file, _, _ in VARIANTS[name]]
    for file in files:
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")
    assert all((checkout / file).read_text() != text for file, text in before.items())
    once = [file.read_text() for file in files]
    for file in files:
        original = REPOSITORY / file.relative_to(checkout)
        file.write_text(original.read_text()) if original.exists() else file.unlink()
    change(checkout, name)
    assert all(file.read_text() != text for file, text in zip(files, once, strict=True))


@pytest.mark.parametrize("name", [name for name, changes in VARIANTS.items() if changes[0][1]])
def test_sources_that_a_variant_does_not_fit_are_refused(checkout: Path, name: str) -> None:
    [(file, old, _)] = VARIANTS[name]
    path = checkout / file
    path.write_text(path.read_text().replace(old, ""))
    with pytest.raises(ValueError, match=f"0 times: mend the variant {name}"):
        change(checkout, name)
    path.write_text(old + old)
    with pytest.raises(ValueError, match="2 times"):
        change(checkout, name)


def test_a_release_that_does_not_start_says_so(checkout: Path) -> None:
    change(checkout, "does_not_start")
    said = python(checkout, "import arches_api.run")
    assert said.returncode == 1 and "this release does not start" in said.stderr


def test_one_request_of_twenty_fails_but_none_of_its_own_proof(checkout: Path) -> None:
    change(checkout, "errors")
    edge, _, others, _ = asked(checkout, 400, 100)
    # 20 are expected; outside of these is one run of a hundred thousand.
    assert 4 <= edge <= 42 and others == 0


def test_a_slow_release_is_slow_only_through_the_edge(checkout: Path) -> None:
    change(checkout, "slow")
    _, edge_s, _, others_s = asked(checkout, 2, 2)
    assert edge_s >= 0.4 > others_s


def test_the_drills_migrations_are_the_next_ones(checkout: Path) -> None:
    change(checkout, "widens")
    code = "from arches_api.migrate import read_migrations as r\nfor m in r(): print(m.name, m.in_transaction)"
    said = python(checkout, code)
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.splitlines()[LEVEL:] == [f"{LEVEL + 1:04d}_drill True", f"{LEVEL + 2:04d}_index_drill False"]
