#!/usr/bin/python3 -I
"""Puts another release into service on this API host without refusing a request, and takes it back.

    arches-rollout status             what serves, and whether a rollout waits for its confirmation
    arches-rollout mark               from now on the figures count that a new release is compared with
    arches-rollout switch VERSION     the release, which was unpacked before, takes the place of the one that serves
    arches-rollout stay VERSION       the same on the way back to it: it stays, nothing waits for a confirmation
    arches-rollout soak SECONDS       watch what it answers; fails as soon as that is worse than before
    arches-rollout keep               whoever rolls out is still there
    arches-rollout confirm            it stays
    arches-rollout back               the release before it serves again

An instance of the new release starts beside the others on the same socket, proves itself (app: preflight.py), and
serves while they are replaced one after the other. Until `confirm` the host goes back by itself: when nobody has said
`keep` for a while (arches-rollout-back.timer), and when it was restarted meanwhile. Every command may be repeated.
Each prints one object of JSON; a failure is one sentence on standard error, with exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import subprocess
import sys
import time
import typing as t
import urllib.request

CONFIGURATION = "/etc/arches/rollout.json"
STATE = "/var/lib/arches/rollout.json"
PROVEN = "/var/lib/arches/proven.json"
MARK = "/run/arches-rollout-mark.json"
RECORD = "/etc/arches/release"
LOCK = "/run/arches-rollout.lock"
DROP_IN = "/run/systemd/system/api@surge.service.d/next.conf"
SURGE, TIMER = "api@surge.service", "arches-rollout-back.timer"
# So many requests a release answers before it serves, and so many when it has proven itself here before: a rollback is
# in a hurry, and what is asked then is whether the release still can.
PREFLIGHT_REQUESTS, PREFLIGHT_AGAIN = 200, 20

# A rollout is stopped at so many errors (5xx) if they are more than this share of the answers ...
ERRORS, ERROR_SHARE = 5, 0.01
# ... or when the median or the 99th percentile is so many times what it was; faster than the floor (seconds) is fast
# enough. With fewer answers than these, on either side, they say nothing. A slow host is given less to do by nginx.
SLOWER, FLOOR = 3.0, 0.1
FEW, ENOUGH = 20, 100
QUANTILES = (("median", 0.5, FEW), ("99th percentile", 0.99, ENOUGH))


class RolloutError(Exception):
    """Why the step was not possible, and what holds now; one sentence."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What instances have answered so far. `buckets`: answers that took at most so many seconds (cumulative)."""

    answers: float = 0
    errors: float = 0
    buckets: dict[float, float] = dataclasses.field(default_factory=dict)

    def __add__(self, other: Figures) -> Figures:
        return self._with(other, 1)

    def __sub__(self, other: Figures) -> Figures:
        return self._with(other, -1)

    def _with(self, other: Figures, sign: int) -> Figures:
        limits = {*self.buckets, *other.buckets}
        buckets = {limit: self.buckets.get(limit, 0) + sign * other.buckets.get(limit, 0) for limit in limits}
        return Figures(self.answers + sign * other.answers, self.errors + sign * other.errors, buckets)

    def quantile(self, share: float) -> float:
        """What this share of the answers took at most, in seconds; 0 without answers.

        Interpolated inside its bucket as Prometheus' histogram_quantile does.
        """
        ordered = sorted(self.buckets.items())
        if not ordered or not ordered[-1][1]:
            return 0.0
        rank, low, below = share * ordered[-1][1], 0.0, 0.0
        for limit, count in ordered:
            if count >= rank:
                return low if limit == float("inf") else low + (limit - low) * (rank - below) / (count - below)
            low, below = limit, count
        return low

    def told(self) -> dict[str, float]:
        """For people: counts, and the percentile in milliseconds."""
        return {
            "answers": int(self.answers),
            "errors": int(self.errors),
            "p99_ms": round(self.quantile(0.99) * 1000, 1),
        }


def read_figures(text: str) -> Figures:
    """The figures in an instance's metrics, without health checks, which would water them down."""
    answers = errors = 0.0
    buckets: dict[float, float] = {}
    for name, labels, value in re.findall(r"^(arches_http_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        if 'route="/health' in labels:
            continue
        if name == "arches_http_requests_total":
            answers += float(value)
            errors += float(value) if re.search(r'status="5\d\d"', labels) else 0
        elif name == "arches_http_request_seconds_bucket" and (found := re.search(r'le="([^"]+)"', labels)):
            limit = float(found[1])
            buckets[limit] = buckets.get(limit, 0) + float(value)
    return Figures(answers, errors, buckets)


def too_many_errors(now: Figures) -> str:
    """Why the errors are too many; empty when they are not."""
    if now.errors < ERRORS or now.errors <= ERROR_SHARE * now.answers:
        return ""
    share = 100 * now.errors / now.answers
    return f"{now.errors:.0f} of its {now.answers:.0f} answers were errors ({share:.1f} %)"


def too_slow(before: Figures, now: Figures) -> str:
    """Why the answers of now take too long beside those before; empty when they do not."""
    for name, share, enough in QUANTILES:
        if min(before.answers, now.answers) < enough:
            continue
        was, is_now = before.quantile(share), now.quantile(share)
        if is_now > max(SLOWER * was, FLOOR):
            return f"its {name} is {is_now * 1000:.0f} ms, and was {was * 1000:.0f} ms before"
    return ""


class Host:
    """The API's releases and instances on this host."""

    def __init__(self, root: str, instances: int, metrics_address: str, metrics_port: int) -> None:
        self.releases = os.path.join(root, "releases")
        self.records = os.path.join(root, "records")
        self.link = os.path.join(root, "current")
        self.instances = range(1, instances + 1)
        self._metrics = (metrics_address, metrics_port)

    def current(self) -> str:
        """The version that `current` names. Raises RolloutError."""
        try:
            return os.path.basename(os.readlink(self.link))
        except OSError:
            raise RolloutError("No release serves on this host yet: run site.yml first.") from None

    def kept(self) -> list[str]:
        """Versions that are unpacked here, the one that served last first."""
        found = [entry for entry in os.scandir(self.releases) if entry.is_dir() and not entry.name.startswith(".")]
        return [entry.name for entry in sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)]

    def point(self, version: str) -> None:
        """Make a release the current one, and say so in the host's record. Instances go on with what they have."""
        os.utime(os.path.join(self.releases, version))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.link}.new")
        os.symlink(os.path.join("releases", version), f"{self.link}.new")
        os.replace(f"{self.link}.new", self.link)
        with open(os.path.join(self.records, f"{version}.json"), encoding="utf-8") as stream:
            record = json.load(stream)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write(RECORD, {**record, "at": now})

    def process(self, instance: int) -> str:
        """Process id of an instance; 0 while it does not run."""
        return systemctl("show", "--property=MainPID", "--value", f"api@{instance}.service").strip()

    def serves(self, instance: int) -> str:
        """The version that an instance runs: it works in the directory that `current` named when it started."""
        try:
            return os.path.basename(os.readlink(f"/proc/{self.process(instance)}/cwd"))
        except OSError:
            return ""

    def replace(self, version: str) -> bool:
        """Restart, one after the other, the instances that run another version. Raises RolloutError."""
        others = [instance for instance in self.instances if self.serves(instance) not in ("", version)]
        for instance in others:
            started(f"api@{instance}.service", "restart")
        return bool(others)

    def figures(self, instance: int) -> Figures:
        """What an instance has answered since it started. Raises RolloutError."""
        address, first = self._metrics
        try:
            with urllib.request.urlopen(f"http://{address}:{first + instance - 1}/metrics", timeout=5) as answer:
                return read_figures(answer.read().decode())
        except OSError as error:
            raise RolloutError(f"api@{instance} does not show its metrics: {error}.") from None

    def all_figures(self) -> Figures:
        """What all instances have answered. Raises RolloutError."""
        return sum((self.figures(instance) for instance in self.instances), Figures())

    @property
    def surge_number(self) -> int:
        """The number of the instance that starts beside the others; it decides the port of its metrics."""
        return len(self.instances) + 1


def systemctl(*arguments: str) -> str:
    """What systemctl prints. Raises RolloutError."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RolloutError(" ".join(done.stderr.split()))
    return done.stdout


def started(unit: str, how: str) -> None:
    """Start or restart a unit and wait until it serves. Raises RolloutError with the last lines of its journal."""
    try:
        systemctl(how, unit)
    except RolloutError:
        # What its processes wrote, not what systemd says of it.
        journal = ["journalctl", f"_SYSTEMD_UNIT={unit}", "--lines=5", "--output=cat", "--no-pager"]
        lines = subprocess.run(journal, capture_output=True, text=True, check=False).stdout.splitlines()
        plain = [line for line in lines if line and not line.startswith("{")]
        raise RolloutError(f"{unit} did not start: {' '.join((plain or lines)[-1:])}") from None


def read(path: str) -> dict[str, t.Any]:
    """The object in a file; empty when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            found: dict[str, t.Any] = json.load(stream)
            return found
    except FileNotFoundError:
        return {}


def write(path: str, content: dict[str, t.Any]) -> None:
    """Put an object into a file, in one piece and on the disk."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as stream:
        stream.write(json.dumps(content) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(f"{path}.new", path)


def forget(path: str) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def pack(figures: Figures) -> dict[str, t.Any]:
    """Figures as JSON keeps them."""
    return {**dataclasses.asdict(figures), "buckets": {str(limit): count for limit, count in figures.buckets.items()}}


def unpack(stored: dict[str, t.Any]) -> Figures:
    """Figures from JSON."""
    buckets = {float(limit): count for limit, count in stored["buckets"].items()}
    return Figures(stored["answers"], stored["errors"], buckets)


def mark(host: Host) -> dict[str, t.Any]:
    """Remember what was answered until now."""
    processes = {str(instance): host.process(instance) for instance in host.instances}
    write(MARK, {"processes": processes, "figures": pack(host.all_figures())})
    return {"changed": False}


def before(host: Host) -> Figures:
    """What the release that serves has answered since the mark; since it started, where that is too little to say."""
    life, marked = host.all_figures(), read(MARK)
    if marked and marked["processes"] == {str(instance): host.process(instance) for instance in host.instances}:
        since = life - unpack(marked["figures"])
        return since if since.answers >= ENOUGH else life
    return life


def proven() -> list[str]:
    """Versions that have proven themselves on this host."""
    return list(read(PROVEN).get("versions", []))


def prove(host: Host, *versions: str) -> None:
    """Remember what has proven itself, as long as it is kept."""
    all_proven = {*proven(), *versions}
    write(PROVEN, {"versions": [version for version in host.kept() if version in all_proven]})


def surge(host: Host, version: str) -> None:
    """Start an instance of the version beside the others. Raises RolloutError when it does not prove itself."""
    release = os.path.join(host.releases, version)
    requests = PREFLIGHT_AGAIN if version in proven() else PREFLIGHT_REQUESTS
    lines = [
        "[Service]", "WorkingDirectory=", f"WorkingDirectory={release}",
        "EnvironmentFile=", "EnvironmentFile=/etc/arches/api.env", f"EnvironmentFile={release}/release.env",
        f"Environment=API_INSTANCE={host.surge_number} API_PREFLIGHT_REQUESTS={requests}",
        # It has one chance.
        "Restart=no",
    ]  # fmt: skip
    os.makedirs(os.path.dirname(DROP_IN), exist_ok=True)
    with open(DROP_IN, "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    systemctl("daemon-reload")
    started(SURGE, "restart")


def end_surge(*how: str) -> None:
    """The instance beside the others leaves, as any does: it drains first."""
    systemctl("stop", *how, SURGE)
    subprocess.run(["systemctl", "reset-failed", SURGE], capture_output=True, check=False)
    forget(DROP_IN)
    systemctl("daemon-reload")


def switch(host: Host, version: str) -> dict[str, t.Any]:
    """Put a release into service; what fails is undone at once. Raises RolloutError."""
    state, current = read(STATE), host.current()
    if state and state["to"] != version:
        raise RolloutError(f"{state['to']} is being rolled out here: run arches-rollout back first.")
    if not state and current == version:
        return {"changed": False, "from": version, "to": version}
    if not os.path.exists(os.path.join(host.records, f"{version}.json")) or version not in host.kept():
        raise RolloutError(f"{version} is not unpacked on this host; there are {', '.join(host.kept())}.")
    state = state or {"from": current, "to": version, "before": pack(before(host))}
    write(STATE, state)
    keep(host)
    try:
        surge(host, version)
        # What serves has proven itself for longer, also where site.yml brought it.
        prove(host, version, state["from"])
        host.point(version)
        host.replace(version)
        if reason := too_many_errors(host.figures(host.surge_number)):
            raise RolloutError(f"{version} was stopped while it took over: {reason}.")
        # Nobody has to wait while it drains.
        end_surge("--no-block")
    except RolloutError as error:
        went = back(host)
        raise RolloutError(f"{error} {went['now']} serves.") from None
    return {"changed": True, "from": state["from"], "to": version}


def stay(host: Host, version: str) -> dict[str, t.Any]:
    """Put a release into service for good. Raises RolloutError."""
    switched = switch(host, version)
    confirm(host)
    return switched


def soak(host: Host, seconds: float) -> dict[str, t.Any]:
    """Watch the release that was put into service. Raises RolloutError as soon as it is worse than the one before."""
    state = read(STATE)
    if not state:
        return {"changed": False}
    earlier, ends = unpack(state["before"]), time.monotonic() + seconds
    processes = [host.process(instance) for instance in host.instances]
    # Speed counts from now on: a process that has just started is cold, and has had company while it did.
    cold = host.all_figures()
    while True:
        try:
            now = host.all_figures()
        except RolloutError:
            now = None
        if now is None or processes != [host.process(instance) for instance in host.instances]:
            raise RolloutError(f"{state['to']} does not last: an instance ended by itself.")
        if reason := too_many_errors(now) or too_slow(earlier, now - cold):
            raise RolloutError(f"{state['to']} does not do as well as {state['from']}: {reason}.")
        if time.monotonic() >= ends:
            return {"changed": False, "before": earlier.told(), "now": now.told()}
        time.sleep(1)


def keep(host: Host) -> dict[str, t.Any]:
    """Begin the time again after which the host goes back by itself."""
    if read(STATE):
        systemctl("restart", TIMER)
    return {"changed": False}


def confirm(host: Host) -> dict[str, t.Any]:
    """The release stays. `now` tells when the host has gone back meanwhile."""
    state = read(STATE)
    forget(STATE)
    systemctl("stop", TIMER)
    return {"changed": bool(state), "now": host.current()}


def back(host: Host) -> dict[str, t.Any]:
    """The release before the rollout serves again. Raises RolloutError."""
    state = read(STATE)
    if not state:
        return {"changed": False, "now": host.current()}
    if host.current() != state["from"]:
        host.point(state["from"])
    # It stops accepting now; what it owes may take it longer than the others need.
    systemctl("stop", "--no-block", SURGE)
    host.replace(state["from"])
    end_surge()
    forget(STATE)
    systemctl("stop", TIMER)
    return {"changed": True, "now": state["from"]}


def status(host: Host) -> dict[str, t.Any]:
    """What serves here."""
    state = read(STATE)
    return {
        "changed": False,
        "current": host.current(),
        "serving": [host.serves(instance) for instance in host.instances],
        "rollout": {"from": state["from"], "to": state["to"]} if state else None,
        "kept": host.kept(),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("status", "mark", "keep", "confirm", "back"):
        commands.add_parser(name)
    for name in ("switch", "stay"):
        commands.add_parser(name).add_argument("version")
    commands.add_parser("soak").add_argument("seconds", type=float)
    options = parser.parse_args()
    try:
        host = Host(**read(CONFIGURATION))
        if options.command in ("status", "soak"):  # they only look
            print(json.dumps(soak(host, options.seconds) if options.command == "soak" else status(host)))
            return 0
        with open(LOCK, "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if options.command in ("switch", "stay"):
                step = switch if options.command == "switch" else stay
                print(json.dumps(step(host, options.version)))
            else:
                steps = {"mark": mark, "keep": keep, "confirm": confirm, "back": back}
                print(json.dumps(steps[options.command](host)))
    except RolloutError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
