"""Every role's default Molecule scenario, two at a time: each uses about one core. SCENARIO=ha runs the long ones.

ROLES="redis nginx" runs these. Without it, what has passed with the same inputs does not run (lib/proven.py).
"""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from lib.fleet import REPOSITORY
from lib.proven import proven, remember

SCENARIO = os.environ.get("SCENARIO", "default")
ALL = sorted(path.parents[2].name for path in REPOSITORY.glob(f"roles/*/molecule/{SCENARIO}/molecule.yml"))
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CHOSEN = os.environ.get("ROLES", "").split()
ROLES = CHOSEN or ALL
PROVEN = {role: at for role in ROLES if not CHOSEN and (at := proven(role, SCENARIO))}


def scenario(role: str) -> subprocess.CompletedProcess[str]:
    """One whole Molecule run: check on a fresh host, converge, idempotence, verify, destroy."""
    return subprocess.run(
        ["molecule", "test", "--scenario-name", SCENARIO], cwd=REPOSITORY / "roles" / role, check=False, text=True,
        timeout=1200, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture(scope="session")
def runs() -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """All runs, started at once and worked off by two workers."""
    with ThreadPoolExecutor(2) as pool:
        yield {role: pool.submit(scenario, role) for role in ROLES if role not in PROVEN}
        pool.shutdown(cancel_futures=True)


def told(output: str) -> str:
    """What Molecule prints of a failure, without its frames and colours, from the first word of it."""
    lines = [COLOUR.sub("", line).lstrip(" │") for line in output.splitlines()]
    starts = (at for at, line in enumerate(lines) if re.match(r"=+ (FAILURES|ERRORS)\b|(fatal|ERROR)\b", line))
    return "\n".join(lines[next(starts, 0) :])[-6000:]


@pytest.mark.parametrize("role", ROLES)
def test_role(role: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    if role in PROVEN:
        pytest.skip(f"proven with the same inputs at {PROVEN[role]}; FRESH=1 proves it again")
    done = runs[role].result()
    if done.returncode:
        pytest.fail(told(done.stdout), pytrace=False)
    # Molecule's verifier is content with no tests at all: the output must show that some ran.
    assert " passed" in done.stdout, f"no test ran:\n{done.stdout[-3000:]}"
    remember(role, SCENARIO)
