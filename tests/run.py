"""Runs the layers of tests in order, prints the slowest steps and one closing line: `N passed, N failed`."""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lib.fleet import Fleet

REPOSITORY = Path(__file__).resolve().parents[1]
REPORTS = REPOSITORY / "results" / "tests"


def ansible_files() -> list[str]:
    """YAML files for ansible-lint. Given files it takes half the time: below a folder it checks each role's syntax."""
    patterns = (
        "site.yml",
        "ansible/*.yml",
        "ansible/recover/**/*.yml",
        "ansible/tasks/**/*.yml",
        "inventories/**/*.yml",
        "nginx/**/*.yml",
        "roles/**/*.yml",
    )
    files = {str(file.relative_to(REPOSITORY)) for pattern in patterns for file in REPOSITORY.glob(pattern)}
    return sorted(file for file in files if "/molecule/" not in file and "/.state/" not in file)


RECOVERIES = [f"tests/drills/test_recover_{part}.py" for part in ("postgres", "data", "fleet")]
FAULTS, ROLLOUTS = "tests/drills/test_faults.py", "tests/drills/test_rollout.py"

# The fast loop: two lanes beside each other, about equally long.
CHECKS = [
    [
        ["ansible-lint", "--config-file", ".config/ansible-lint.yml", *ansible_files()],
        ["pytest", "app/tests/unit", "tests/lib", "tests/monitoring"],
    ],
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        ["mypy"],
        ["yamllint", "--strict", "."],
        ["pytest", "tests/rules", "tests/plugins", "tests/workflows/test_workflows.py"],
    ],
]


@dataclass
class Tally:
    """Counts of one run and the time each step and each test took, in seconds."""

    passed: int = 0
    failed: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    tests: dict[str, float] = field(default_factory=dict)
    # Steps that run beside each other print what they have to say when they end.
    beside: bool = False


def run(tally: Tally, name: str, command: list[str]) -> bool:
    """Run one step; a pytest step counts its tests, any other counts as one test."""
    capture = tally.beside
    report = REPORTS / f"{name.replace(' ', '-').replace('/', '-')}.xml"
    tests = "pytest" in command
    if tests:
        command = [*command, f"--junitxml={report}"]
        report.unlink(missing_ok=True)
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=REPOSITORY, check=False, text=True,
        stdout=subprocess.PIPE if capture else None, stderr=subprocess.STDOUT if capture else None,
    )  # fmt: skip
    tally.steps[name] = time.monotonic() - started
    if capture and (done.returncode or tests):
        print(f"--- {name}\n{done.stdout}", flush=True)
    passed, failed = 1, 0
    if tests:
        seen = _read(report)
        passed, failed = _counts(seen)
        tally.tests |= _durations(seen)
    if done.returncode and not failed:
        # Also a runner that broke before it could report is a failure.
        passed, failed = (passed if tests else 0), 1
    tally.passed += passed
    tally.failed += failed
    print(f"=== {name}: {'ok' if not done.returncode else 'FAILED'} in {tally.steps[name]:.1f} s", flush=True)
    return not done.returncode


def _read(report: Path) -> ElementTree.Element:
    """What pytest has written; nothing where it broke before it could."""
    return ElementTree.parse(report).getroot() if report.exists() else ElementTree.Element("testsuites")


def _counts(report: ElementTree.Element) -> tuple[int, int]:
    suites = report.iter("testsuite")
    counts = [{k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")} for suite in suites]
    failed = sum(c["failures"] + c["errors"] for c in counts)
    return sum(c["tests"] - c["skipped"] for c in counts) - failed, failed


def _durations(report: ElementTree.Element) -> dict[str, float]:
    return {
        f"{case.get('classname')}.{case.get('name')}": float(case.get("time", 0)) for case in report.iter("testcase")
    }


def check(tally: Tally) -> None:
    """Format, lint, types, repository rules, unit tests."""

    def steps(commands: list[list[str]]) -> None:
        for command in commands:
            run(tally, " ".join(command[:2]), command)

    lanes(tally, *(partial(steps, commands) for commands in CHECKS))


def lanes(tally: Tally, *each: Callable[[], object]) -> None:
    """Run them beside each other."""
    tally.beside = True
    with ThreadPoolExecutor(len(each)) as pool:
        list(pool.map(lambda lane: lane(), each))
    tally.beside = False


def parts(tally: Tally) -> None:
    """What needs neither a role nor a fleet, in two lanes: none of them fills a core."""

    def short() -> None:
        for layer in (machines, packages, artefacts):
            layer(tally)

    lanes(tally, short, partial(recover, tally))


def machines(tally: Tally) -> None:
    """The provider of local machines."""
    run(tally, "machines", ["pytest", "tests/machines"])


def recover(tally: Tally) -> None:
    """The runner of recoveries and the fleet lock, on an etcd of their own; no fleet needed."""
    run(tally, "recover", ["pytest", "tests/recover"])


def packages(tally: Tally) -> None:
    """What Debian does not ship: built when it is not in the cache; the builder and its repository."""
    run(tally, "build packages", ["python", "packages/build.py"])
    run(tally, "packages", ["pytest", "tests/packages"])


def roles(tally: Tally) -> None:
    """Molecule scenarios of the roles, two at a time."""
    run(tally, "roles", ["pytest", "tests/molecule"])


def artefacts(tally: Tally) -> None:
    """Releases; the embedder and its model."""
    run(tally, "release", ["pytest", "tests/release"])
    run(tally, "embedder", ["pytest", "app/embedder/tests"])


def app(tally: Tally) -> None:
    """The API on real Postgres, PgBouncer and Redis (machine of `make dev`)."""
    with fleet_of(tally, "dev", ["ansible-playbook", "-i", "inventories/dev", "ansible/dev.yml"]):
        run(tally, "app", ["ansible/bin/dev", "exec", "pytest", "app/tests/integration"])
        run(tally, "postgres", ["ansible/bin/dev", "exec", "pytest", "tests/postgres"])


def fleet(tally: Tally) -> None:
    """The fleet of `make up`, made and removed here unless one is running: its tests, alerts, recoveries, rollouts."""
    with fleet_of(tally, "local", []):
        # Every other test would only wait for a fleet that is not there.
        if not run(tally, "up", ["pytest", "tests/fleet/test_0_up.py"]):
            return
        run(tally, "fleet", ["pytest", "tests/fleet", "--ignore=tests/fleet/test_0_up.py", "-m", "not long"])
        alerts(tally)
        run(tally, "recoveries", ["pytest", "-s", *RECOVERIES, "-m", "not long"])
        run(tally, "rollouts", ["pytest", ROLLOUTS, "-m", "not long"])


def alerts(tally: Tally) -> None:
    """Alerts are caused on a running fleet: six of them, or those that ALERTS names."""
    run(tally, "alerts", ["pytest", "tests/drills/test_alerts.py"])


def full(tally: Tally) -> None:
    """What is long and rarely breaks: the data tier's roles on three machines, all alerts, recoveries and rollouts."""
    run(tally, "roles ha", ["env", "SCENARIO=ha", "pytest", "tests/molecule"])
    with fleet_of(tally, "local", ["make", "up"]):
        run(tally, "fleet long", ["pytest", "tests/fleet", "-m", "long"])
        run(tally, "logs", ["env", "LOKI_DOWN_S=180", "pytest", "tests/fleet/test_4_logs.py"])
        run(tally, "alerts all", ["env", "ALERTS=all", "pytest", "tests/drills/test_alerts.py"])
        run(tally, "release workflow", ["pytest", "tests/workflows/test_release.py"])
        repeated(tally, 5, "recoveries all", *RECOVERIES)
        repeated(tally, 20, "host lost", FAULTS, "-k", "host-lost")
        repeated(tally, 5, "faults all", FAULTS, "-k", "not host-lost")
        repeated(tally, 20, "switchovers", ROLLOUTS, "-k", "switchover")
        repeated(tally, 5, "rollouts all", ROLLOUTS, "-k", "not switchover")


def repeated(tally: Tally, times: int, name: str, *drills: str) -> None:
    """Drills, so often one after the other; each keeps its figures."""
    run(tally, name, ["env", f"REPEATS={times}", "pytest", "-s", *drills])


@contextmanager
def fleet_of(tally: Tally, environment: str, up: list[str]) -> Iterator[None]:
    """Use the machines of an environment; machines that were not there before are removed afterwards."""
    inventory = f"inventories/{environment}"
    existed, kept = Fleet(environment).exists(), Fleet(environment).keeps()
    try:
        if up:
            run(tally, f"up {environment}", up)
        yield
    finally:
        if not existed:
            absent = ["ansible-playbook", "-i", inventory, "ansible/machines.yml", "-e", "state=absent"]
            run(tally, f"down {environment}", [*absent, *([] if kept else ["-e", "delete_volumes=true"])])


def main(names: list[str]) -> int:
    """Run the named layers; returns the exit status."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{REPOSITORY / '.venv/bin'}:{os.environ['PATH']}"
    layers = {
        "check": check, "parts": parts, "machines": machines, "recover": recover, "packages": packages,
        "artefacts": artefacts, "roles": roles, "app": app, "fleet": fleet, "alerts": alerts, "full": full,
    }  # fmt: skip
    tally = Tally()
    for name in names:
        layers[name](tally)
    for what, times in (("steps", tally.steps), ("tests", tally.tests)):
        print(f"slowest {what}:")
        for name, seconds in sorted(times.items(), key=lambda item: -item[1])[:12]:
            print(f"  {seconds:7.1f} s  {name}")
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
