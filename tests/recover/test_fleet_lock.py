"""The fleet lock on a real etcd: one holder, known to all, gone when its playbook is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet_lock import (
    Claim,
    Etcd,
    Found,
    LockError,
    NoQuorum,
    acquire,
    assure,
    context_of,
    family_of,
    keep,
    look,
    no_quorum,
    revoke,
    run_of,
)
from json_https import NoAnswer, Response
from lib.waiting import wait_for

from .conftest import Ca, Members, free_port

# etcd's shortest lease is a bit below.
TTL_S = 3


def claim(name: str, run: str = "") -> Claim:
    """Somebody who wants the lock."""
    return Claim(f"{name}@ctl1", f"deploy by {name}", "2026-11-03 03:12:05 UTC", run or name)


@contextlib.contextmanager
def playbook() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for ansible-playbook."""
    process = subprocess.Popen(["sleep", "300"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def keeper_of(pid: int) -> int:
    """The process that keeps the lock while `pid` lives, by the file it waits on."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"module_utils/fleet_lock.py" in command and any(
                f"Pid:\t{pid}\n" in info.read_text() for info in (folder / "fdinfo").iterdir()
            ):
                return int(folder.name)
    raise AssertionError(f"nobody keeps the lock of {pid}")


def ended(pid: int) -> bool:
    """Whether a process has ended; the number may still be there until its parent asks."""
    file = Path(f"/proc/{pid}/cmdline")
    return not file.exists() or not file.read_bytes()


def kept(etcd: Members, process: subprocess.Popen[bytes]) -> None:
    """Take the lock for a process and have it kept."""
    lease = acquire(etcd.client, claim("anna"), ttl_s=TTL_S)
    assert lease
    keep(etcd.endpoints, etcd.ca.certificate, etcd.ca.own, lease, process.pid, TTL_S)


def leases(etcd: Members) -> set[str]:
    """Every lease there is; etcd lists them in no order."""
    return {lease["ID"] for lease in etcd.client.call("lease/leases", {})["leases"]}


def free(etcd: Members) -> bool:
    """Whether nobody has the lock."""
    return look(etcd.client) is None


def test_the_second_reads_who_is_there_and_how_to_go_on(etcd: Members) -> None:
    acquire(etcd.client, claim("anna"))
    with pytest.raises(LockError) as refused:
        acquire(etcd.client, claim("bob"))
    for text in ("anna@ctl1", "deploy by anna", "2026-11-03 03:12:05 UTC", "-e break_lock=anna@ctl1"):
        assert text in str(refused.value)
    found = look(etcd.client)
    assert found is not None and found.claim == claim("anna")


def test_who_was_refused_leaves_no_lease_behind(etcd: Members) -> None:
    acquire(etcd.client, claim("anna"))
    before = leases(etcd)
    with pytest.raises(LockError):
        acquire(etcd.client, claim("bob"))
    assert leases(etcd) == before


def test_the_same_run_has_it_already_another_of_the_same_person_has_not(etcd: Members) -> None:
    assert acquire(etcd.client, claim("anna", "first"))
    assert acquire(etcd.client, claim("anna", "first")) is None
    with pytest.raises(LockError, match="locked by anna@ctl1"):
        acquire(etcd.client, claim("anna", "second"))


def test_what_a_run_has_started_is_part_of_it(etcd: Members) -> None:
    acquire(etcd.client, claim("anna", "first"))
    assert acquire(etcd.client, claim("anna", "nested"), family=["nested", "shell", "first"]) is None
    assure(etcd.client, ["nested", "shell", "first"])
    with pytest.raises(LockError, match="locked by anna@ctl1"):
        acquire(etcd.client, claim("anna", "beside"), family=["beside", "shell"])


def test_only_the_holders_name_breaks_a_lock(etcd: Members) -> None:
    acquire(etcd.client, claim("anna"))
    for name in ("anna", "bob@ctl1", "anna@ctl"):
        with pytest.raises(LockError, match=f"locked by anna@ctl1 .* break_lock names {name}, who does not have it"):
            acquire(etcd.client, claim("bob"), name)
    assert acquire(etcd.client, claim("bob"), "anna@ctl1")
    assure(etcd.client, ["bob"])
    with pytest.raises(LockError, match="lost the fleet lock: bob@ctl1 has it for deploy by bob"):
        assure(etcd.client, ["anna"])


def test_break_lock_does_no_harm_where_nobody_holds_it(etcd: Members) -> None:
    assert acquire(etcd.client, claim("bob"), "anna@ctl1")


def test_a_lock_that_was_given_back_a_moment_ago_is_waited_for(etcd: Members) -> None:
    with playbook() as process:
        kept(etcd, process)
        os.kill(process.pid, signal.SIGTERM)
        # No waiting here: the next playbook starts at once.
        assert acquire(etcd.client, claim("bob"))


def test_a_kept_lock_outlives_its_time_to_live(etcd: Members) -> None:
    with playbook() as process:
        kept(etcd, process)
        until = time.monotonic() + 2.5 * TTL_S

        def over() -> bool:
            found = look(etcd.client)
            assert found is not None and found.claim.run == "anna"
            return time.monotonic() > until

        wait_for("the time to live has passed twice", over, timeout_s=4 * TTL_S)


def test_a_killed_playbook_frees_the_lock_at_once(etcd: Members) -> None:
    with playbook() as process:
        kept(etcd, process)
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_for("the lock is free", lambda: free(etcd), timeout_s=20)
        assert time.monotonic() - killed < TTL_S


def test_a_dead_controller_frees_the_lock_within_its_time_to_live(etcd: Members) -> None:
    with playbook() as process:
        kept(etcd, process)
        os.kill(keeper_of(process.pid), signal.SIGKILL)
        killed = time.monotonic()
        wait_for("the lock is free", lambda: free(etcd), timeout_s=20)
        # etcd looks for ended leases twice a second.
        assert time.monotonic() - killed < TTL_S + 3


def test_a_keeper_leaves_a_lock_that_was_broken(etcd: Members) -> None:
    with playbook() as process:
        kept(etcd, process)
        keeper = keeper_of(process.pid)
        assert acquire(etcd.client, claim("bob"), "anna@ctl1")
        wait_for("anna's keeper is gone", lambda: ended(keeper), timeout_s=20)
        assure(etcd.client, ["bob"])


def test_a_playbook_that_is_gone_before_its_keeper_looks_leaves_no_lock(etcd: Members) -> None:
    with playbook() as process:
        process.kill()
        process.wait()
        lease = acquire(etcd.client, claim("anna"), ttl_s=300)
        assert lease
        with pytest.raises(LockError, match="did not start"):
            keep(etcd.endpoints, etcd.ca.certificate, etcd.ca.own, lease, process.pid, 300)
    wait_for("the lock is free", lambda: free(etcd), timeout_s=20)


def test_one_silent_member_is_no_hindrance(etcd: Members) -> None:
    etcd.signal(signal.SIGSTOP, "data1")
    with playbook() as process:
        wait_for("the others have a leader", lambda: took(etcd), timeout_s=30)
        kept(etcd, process)
        process.kill()
        wait_for("the lock is free", lambda: free(etcd), timeout_s=20)


def took(etcd: Members) -> bool:
    """Take the lock and give it back."""
    try:
        lease = acquire(etcd.client, claim("bob"))
    except NoQuorum as reason:
        raise AssertionError(str(reason)) from reason
    assert lease
    revoke(etcd.client, lease)
    return True


def test_a_quorum_that_comes_back_is_waited_for(etcd: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    def come_back(reasons: Mapping[str, str]) -> str:
        etcd.signal(signal.SIGCONT, "data1", "data2")
        asked.append(reasons)
        return no_quorum(reasons)

    asked: list[Mapping[str, str]] = []
    monkeypatch.setattr("fleet_lock.no_quorum", come_back)
    etcd.signal(signal.SIGSTOP, "data1", "data2")
    patient = Etcd(etcd.endpoints, etcd.client.context, patience_s=30)
    assert acquire(patient, claim("anna"))
    assert asked


class LosesAnAnswer(Etcd):
    """The first request to take the lock is done, and nobody hears of it."""

    lost = 0

    def _ask(self, name: str, path: str, body: Mapping[str, Any]) -> Response:
        answer = super()._ask(name, path, body)
        if path == "kv/txn" and not self.lost:
            self.lost += 1
            raise NoAnswer(self.endpoints[name], "the connection was reset")
        return answer


def test_a_lock_whose_answer_was_lost_is_ours(etcd: Members) -> None:
    client = LosesAnAnswer(etcd.endpoints, etcd.client.context)
    lease = acquire(client, claim("anna"))
    found = look(etcd.client)
    assert client.lost and found is not None and found.lease == lease


def test_without_a_quorum_every_member_is_named(etcd: Members) -> None:
    etcd.signal(signal.SIGSTOP, "data1", "data2")

    def refused() -> str:
        with pytest.raises(NoQuorum) as error:
            acquire(etcd.client, claim("anna"))
        return str(error.value)

    began = time.monotonic()
    said = refused()
    assert time.monotonic() - began < 15
    for name in ("data1", "data2", "data3"):
        assert f"{name}: " in said


def test_a_lock_is_kept_while_etcd_has_no_quorum(etcd: Members) -> None:
    with playbook() as process:
        kept(etcd, process)
        # Not the leader: it would take the time in which it stood still for that of the lease.
        others = [name for name in etcd.endpoints if name != etcd.leader]
        etcd.signal(signal.SIGSTOP, *others)
        until = time.monotonic() + 2 * TTL_S
        wait_for("the time to live has passed", lambda: time.monotonic() > until, timeout_s=3 * TTL_S)
        etcd.signal(signal.SIGCONT, *others)
        found = wait_for("etcd answers again", lambda: look_or_fail(etcd.client), timeout_s=60)
        assert found is not None and found.claim.run == "anna"


def look_or_fail(client: Etcd) -> Found | None:
    """The lock, once etcd says anything."""
    try:
        return look(client)
    except NoQuorum as reason:
        raise AssertionError(str(reason)) from reason


def test_nobody_listens(ca: Ca) -> None:
    nobody = Etcd({"data1": f"https://127.0.0.1:{free_port('127.0.0.1')}"}, context_of(ca.certificate, ca.own))
    with pytest.raises(NoQuorum, match=r"data1: .*nothing listens there"):
        acquire(nobody, claim("anna"))


def test_a_process_has_a_name_of_its_own() -> None:
    with playbook() as one, playbook() as other:
        assert run_of(one.pid) == run_of(one.pid) != run_of(other.pid)
        assert family_of(one.pid)[:2] == [run_of(one.pid), run_of(os.getpid())]
