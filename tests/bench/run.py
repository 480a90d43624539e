"""Measures the figures of `make bench` and writes results/bench.json, each with its target and the floor beside it.

Uses a running local fleet; without one it makes its own and removes it (then `make up` itself is measured too).
Names of figures on the command line measure only those.
"""

import functools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As pytest has it (pyproject.toml).
sys.path.extend(
    str(Path(__file__).resolve().parents[2] / folder)
    for folder in ("tests", "ansible/bin", "ansible/plugins/module_utils")
)

import httpx
import yaml

from lib.client import edge_client, register_and_login
from lib.fleet import REPOSITORY, Fleet, local_fleet
from lib.variants import publish
from lib.waiting import wait_for

FIGURES: dict[str, Callable[[Fleet], dict[str, Any]]] = {}


def figure(function: Callable[[Fleet], dict[str, Any]]) -> Callable[[Fleet], dict[str, Any]]:
    """Register a measurement under its function's name."""
    FIGURES[function.__name__] = function
    return function


def measured(values: list[float], unit: str, target: float, floor: float | None, floor_is: str) -> dict[str, Any]:
    """One figure: median of the repeats with their spread, its target and the floor measured in the same run."""
    return {
        "value": round(statistics.median(values), 3), "unit": unit, "target": target,
        "floor": None if floor is None else round(floor, 3), "floor_is": floor_is,
        "repeats": len(values), "spread": [round(min(values), 3), round(max(values), 3)],
    }  # fmt: skip


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def local_play(state: str, count: int) -> float:
    """Seconds the provider needs for `count` machines of a fleet of the bench's own."""
    fleet = {"id": "bench"}
    machines = [{"name": f"m{n}", "memory_mb": 512, "cpus": 1} for n in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        wish = {"fleet": fleet, "machines": machines, "state": state, "state_dir": str(STATE)}
        task = {"nspawn": {**wish, "image": str(REPOSITORY / "ansible/image")}}
        play = [{"hosts": "localhost", "gather_facts": False, "tasks": [{"name": "Machines", **task}]}]
        path = Path(folder) / "play.yml"
        path.write_text(yaml.safe_dump(play))
        hosts = Path(folder) / "hosts.yml"
        hosts.write_text("all: {hosts: {localhost: {ansible_connection: local}}}\n")
        interpreter = f"ansible_python_interpreter={sys.executable}"
        return seconds(lambda: command("ansible-playbook", "-i", str(hosts), "-e", interpreter, str(path)))


def command(*line: str) -> str:
    """Output of a command run in the repository; raises CalledProcessError when it fails."""
    return subprocess.run(
        [str(REPOSITORY / ".venv/bin" / line[0]) if line[0].startswith("ansible") else line[0], *line[1:]],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


STATE = Path(tempfile.gettempdir()) / "arches-bench"


@figure
def machines_boot_8(_: Fleet) -> dict[str, Any]:
    """Eight machines from a cached image until ssh answers on each, the playbook's own start included."""
    boots, empty = [], []
    local_play("present", 1)
    local_play("absent", 1)
    for _repeat in range(3):
        boots.append(local_play("present", 8))
        empty.append(local_play("present", 8))
        local_play("absent", 8)
    return measured(boots, "s", 6, statistics.median(empty), "the same play with nothing to do")


@figure
def second_site(fleet: Fleet) -> dict[str, Any]:
    """site.yml on a converged fleet."""
    runs, pings = [], []
    for _repeat in range(3):
        pings.append(seconds(lambda: command("ansible", "-i", str(fleet.inventory), "all", "-m", "ping")))
        runs.append(seconds(lambda: fleet.playbook("site.yml")))
    return measured(runs, "s", 95, statistics.median(pings), "ansible -m ping over the same hosts")


@figure
def idle_memory(fleet: Fleet) -> dict[str, Any]:
    """Sum of PSS of all processes of the idle fleet."""
    script = "cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ {sum += $2} END {print sum}'"
    by_host = {host: int(fleet.ssh(host, script).stdout) / 1024 / 1024 for host in fleet.groups["all"]}
    floor = min(by_host.values()) * len(by_host)
    # 3 without what watches the fleet, 1.6 for that.
    result = measured([sum(by_host.values())], "GiB", 4.6, floor, "the emptiest host, eight times")
    return {**result, "by_host": {host: round(value, 3) for host, value in by_host.items()}}


@figure
def collector_memory(fleet: Fleet) -> dict[str, Any]:
    """Resident memory of the collector on an idle host: median of all hosts, in MiB."""
    script = "awk '/^VmRSS:/ {print $2}' /proc/$(systemctl show -p MainPID --value otel-collector)/status"
    sizes = [int(fleet.ssh(host, script).stdout) / 1024 for host in fleet.groups["all"]]
    return measured(sizes, "MiB", 80, None, "none: a process of ours")


@figure
def collector_cpu(fleet: Fleet) -> dict[str, Any]:
    """Share of a core that the collector of an idle host takes in 30 seconds, in per cent: median of all hosts."""
    script = "awk '{print $14 + $15}' /proc/$(systemctl show -p MainPID --value otel-collector)/stat"

    def ticks() -> dict[str, tuple[float, int]]:
        return {host: (time.monotonic(), int(fleet.ssh(host, script).stdout)) for host in fleet.groups["all"]}

    before = ticks()
    wait_for("half a minute", lambda: time.monotonic() - min(at for at, _ in before.values()) > 30, 60, 1)
    after = ticks()
    shares = [(after[h][1] - before[h][1]) / (after[h][0] - before[h][0]) for h in before]
    return measured(shares, "%", 2, None, "none: a process of ours")


@figure
def series(fleet: Fleet) -> dict[str, Any]:
    """Series in Prometheus for the local fleet, and what the smallest host costs."""
    counted = prometheus(fleet, 'count({__name__=~".+"})')
    by_host = prometheus(fleet, 'min(count by (host) ({host!="",__name__=~".+"}))')
    return measured([counted], "", 15_000, by_host, "the host with the fewest")


def prometheus(fleet: Fleet, query: str) -> float:
    """Value of a query of one number, asked on the ops host."""
    url = f"http://127.0.0.1:{fleet.services['prometheus']['port']}/api/v1/query"
    said = fleet.ssh(fleet.groups["ops"][0], f"curl -sS -G {url} --data-urlencode {shlex.quote(f'query={query}')}")
    return float(json.loads(said.stdout)["data"]["result"][0]["value"][1])


@figure
def log_line_to_queryable(fleet: Fleet) -> dict[str, Any]:
    """Seconds from a line in a host's journal until Loki finds it: p95 of twenty."""
    from bench import logs

    taken = logs.log_line_to_queryable(fleet)
    result = measured(taken, "s", 5, 1.0, "the collector sends once a second")
    return {**result, "value": round(logs.p95(taken), 3), "p50": result["value"]}


@figure
def log_lines_lost(fleet: Fleet) -> dict[str, Any]:
    """Lines that were lost of a unit that writes 300 a second for a minute."""
    from bench import logs

    seen = logs.busy_unit(fleet)
    return {**measured([seen["lost"]], "", 0, 0, "none lost"), **seen}


@figure
def leader_loss(fleet: Fleet) -> dict[str, Any]:
    """Seconds without an acknowledged write through the edge after the leader's host fell silent."""
    gaps = []
    with edge_client(fleet, timeout_s=5) as client:
        user = register_and_login(client)

        def write() -> bool:
            try:
                answer = client.post("/v1/artifacts", json={"name": "probe", "text": "probe"}, headers=user)
            except (OSError, httpx.HTTPError):
                return False
            return answer.status_code == 201

        for _repeat in range(3):
            wait_for("the fleet is healthy", fleet.healthy, timeout_s=120, interval_s=1)
            leader = fleet.status()[1]["postgres"]["leader"]
            wait_for("a write", write, timeout_s=10)
            cut_at = time.monotonic()
            fleet.machines("killed", leader)
            wait_for("writes are back", write, timeout_s=90)
            gaps.append(time.monotonic() - cut_at)
            fleet.machines("present", leader)
    wait_for("the fleet is healthy", fleet.healthy, timeout_s=120, interval_s=1)
    ttl = float(fleet.variables["data1"]["timers"]["patroni"]["ttl"])
    return measured(gaps, "s", 10, ttl, "Patroni's lease (ttl)")


@functools.cache
def rollouts(fleet: Fleet) -> dict[str, list[float]]:
    """What three releases cost that come and go again: seconds by step, size of the last one in MB."""
    found: dict[str, list[float]] = {"build": [], "deploy": [], "rollback": []}
    for _repeat in range(3):
        wait_for("the fleet is healthy", fleet.healthy, timeout_s=120, interval_s=1)
        began = time.monotonic()
        version = publish(fleet, "good")
        found["build"].append(time.monotonic() - began)
        deployed = functools.partial(fleet.playbook, "ansible/deploy.yml", "-e", f"release={version}")
        found["deploy"].append(seconds(deployed))
        found["rollback"].append(seconds(lambda: fleet.playbook("ansible/rollback.yml")))
    found["size"] = [(fleet.state / "releases" / f"api-{version}.tar.gz").stat().st_size / 1e6]
    return found


@figure
def release_build(fleet: Fleet) -> dict[str, Any]:
    """Building, signing and publishing a release; what it depends on was downloaded before."""
    return measured(rollouts(fleet)["build"], "s", 60, None, "none: a build of ours")


@figure
def release_size(fleet: Fleet) -> dict[str, Any]:
    """A release as hosts download it."""
    return measured(rollouts(fleet)["size"], "MB", 120, None, "none: a file of ours")


@figure
def deploy(fleet: Fleet) -> dict[str, Any]:
    """A release comes to the three API hosts, which nobody uses meanwhile."""
    return measured(rollouts(fleet)["deploy"], "s", 120, 20, "the first host is watched for so long")


@figure
def rollback(fleet: Fleet) -> dict[str, Any]:
    """The release before serves again on the three API hosts."""
    ping = seconds(lambda: command("ansible", "-i", str(fleet.inventory), "api", "-m", "ping"))
    return measured(rollouts(fleet)["rollback"], "s", 30, ping, "ansible -m ping over the same hosts")


@figure
def search(fleet: Fleet) -> dict[str, Any]:
    """Search over 100,000 artifacts of one tenant at an API host (tests/bench/search.py)."""
    from bench.search import run

    return run(fleet)


def up_and_down(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """`make up` from a cached image; only measured when no fleet is running."""
    empty = seconds(lambda: command("ansible-inventory", "-i", str(fleet.inventory), "--host", "edge1"))
    up = seconds(lambda: command("make", "up"))
    site = seconds(lambda: fleet.playbook("site.yml"))
    return {"up": measured([up], "s", 420, site, "site.yml with nothing to change")} | {
        "ansible_start": {"value": empty}
    }


def main(names: list[str]) -> int:
    """Measure and write results/bench.json; returns 1 when a figure misses its target."""
    unknown = set(names) - set(FIGURES)
    if unknown:
        print(f"no such figure: {', '.join(sorted(unknown))}. Known: {', '.join(FIGURES)}")
        return 2
    fleet = local_fleet()
    results: dict[str, dict[str, Any]] = {}
    own = not fleet.exists()
    start = None
    if own:
        measures = up_and_down(fleet)
        start = measures.pop("ansible_start")["value"]
        results |= measures
    for name, measure in FIGURES.items():
        if not names or name in names:
            print(f"measuring {name}", flush=True)
            results[name] = measure(fleet)
    if own:
        down = seconds(lambda: command("make", "down", "FORCE=1"))
        results["down"] = measured([down], "s", 5, start, "ansible-inventory: Ansible's own start")
    path = REPOSITORY / "results" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    for name, entry in results.items():
        mark = "ok  " if entry["value"] <= entry["target"] else "OVER"
        line = f"{mark} {name:18} {entry['value']:>9} {entry['unit']:4} target {entry['target']:>5}"
        print(f"{line}  floor {entry['floor']} ({entry['floor_is']}), {entry['repeats']} repeats {entry['spread']}")
    return int(any(entry["value"] > entry["target"] for entry in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
