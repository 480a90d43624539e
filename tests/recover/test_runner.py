"""The runner of recoveries, with toys for stages: plan, confirm, act, resume, prove, record, whatever comes between."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import termios
import time

import pytest

from fleet_lock import Claim, acquire, holder, look
from lib.waiting import wait_for

from .conftest import Playbook, Toy

ACT = ("-e", "confirm=local")


def names(toy: Toy) -> list[str]:
    """The events of the record in short."""
    return [" ".join(filter(None, (event["event"], event.get("stage")))) for event in toy.events()]


def held(toy: Toy, place: str, *options: str) -> Playbook:
    """A run that stands still at a place such as `two-before`."""
    (toy.folder / f"hold-{place}").touch()
    process = toy.start(*ACT, *options)
    try:
        wait_for(f"the run reaches {place}", lambda: reached(toy, place, process), timeout_s=120)
    except BaseException:
        process.end()
        raise
    return process


def reached(toy: Toy, place: str, process: Playbook) -> bool:
    """Whether a run has come to a place; it must not end before."""
    if process.poll() is not None:
        raise RuntimeError(process.communicate()[0])
    return (toy.folder / f"reached-{place}").exists()


def release(toy: Toy, place: str) -> None:
    """Let runs pass a place."""
    (toy.folder / f"hold-{place}").unlink()


def untouched(toy: Toy) -> bool:
    """Whether nothing was changed."""
    return not toy.written and not toy.events() and toy.edge.writes == 0


# Looking and asking


def test_without_a_confirmation_there_is_only_the_plan(toy: Toy) -> None:
    code, said = toy.run("-e", "colour=blue")
    assert code == 2
    print(said)
    for text in ("toy in local, with colour=blue", "now      nobody leads", "2. two: Write two", "postgres: "):
        assert text in said
    assert "This was the plan. Nothing was changed. To act, say -e confirm=local." in said
    assert untouched(toy)


def test_a_check_shows_the_plan_and_ends_well(toy: Toy) -> None:
    code, said = toy.run("--check", *ACT)
    assert code == 0, said
    assert "2. two: Write two" in said
    assert untouched(toy)


def test_a_wrong_name_names_both(toy: Toy) -> None:
    code, said = toy.run("-e", "confirm=prod")
    assert code == 2
    assert "confirm says prod, but this inventory is local. Nothing was changed." in said
    assert untouched(toy)


def test_a_misspelled_argument_is_refused(toy: Toy) -> None:
    code, said = toy.run(*ACT, "-e", "color=blue")
    assert code == 2
    assert "toy does not know color. It takes accept_no_backup, break_lock, colour, confirm" in said
    assert untouched(toy)


def test_nothing_wrong_means_nothing_done(toy: Toy) -> None:
    toy.plan(nothing="Everybody is well.")
    code, said = toy.run(*ACT)
    assert code == 0, said
    assert "Everybody is well. Nothing was changed." in said
    assert untouched(toy)


def test_what_cannot_be_done_is_said_with_the_plan(toy: Toy) -> None:
    toy.plan(impossible="No standby can take over: bring one back first.")
    code, said = toy.run(*ACT)
    assert code == 2
    assert "No standby can take over: bring one back first. Nothing was changed." in said
    assert untouched(toy)


def test_a_plan_that_says_too_little_is_refused(toy: Toy) -> None:
    toy.write("toy/plan.yml", [{"ansible.builtin.set_fact": {"plan": {"now": [], "hosts": [], "outgae": "none"}}}])
    code, said = toy.run(*ACT)
    assert code == 2
    assert "`plan` lacks ['outage', 'loss'] and has unknown keys ['outgae']" in said
    assert untouched(toy)


@pytest.mark.parametrize("typed", ["local", "prod"])
def test_at_a_terminal_the_name_is_asked_for(toy: Toy, typed: str) -> None:
    ours, theirs = pty.openpty()
    process = toy.start(stdin=theirs, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(theirs)
    try:
        assert process.stdout
        said = ""
        while "Type local to act" not in said:
            line = os.read(process.stdout.fileno(), 65536).decode()
            assert line, said
            said += line
        # Who is asked has the lock: nothing changes while somebody thinks.
        found = look(toy.etcd.client)
        assert found is not None and found.claim.holder == holder()
        os.write(ours, f"{typed}\r".encode())
        said += process.communicate(timeout=120)[0]
    finally:
        process.end()
        os.close(ours)
    if typed == "local":
        assert process.returncode == 0, said
        assert toy.written == ["one", "two", "three"]
    else:
        assert process.returncode == 2
        assert "You typed `prod`, this is local. Nothing was changed." in said
        assert untouched(toy)


# Acting


def test_stages_run_in_order_are_proven_and_recorded(toy: Toy) -> None:
    toy.edge.refuse = 2
    code, said = toy.run(*ACT, "-e", "colour=blue")
    assert code == 0, said
    assert toy.written == ["one", "two", "three"]
    stages = [f"{event} {stage}" for stage in toy.stages for event in ("stage", "done")]
    assert names(toy) == ["begun", *stages, "finished"]
    first, last = toy.events()[0], toy.events()[-1]
    assert first["who"] == holder() and first["arguments"] == {"colour": "blue"} and first["commit"]
    assert first["plan"]["loss"] == "nothing"
    assert last["outcome"] == {"one": "blue", "two": "blue", "three": "blue"}
    assert toy.edge.writes == 1 and last["proof"]["edge1"]["first_write_s"] > 0.5
    assert toy.copy.read_text() == toy.record.read_text()
    assert "toy: recovered and proven" in said
    # The lock ended with the run.
    wait_for("the lock is free", lambda: look(toy.etcd.client) is None, timeout_s=5)


def test_silent_hosts_are_left_out(toy: Toy) -> None:
    """Also the host that keeps a copy of the record; and the first host of the play is one of them."""
    for group, name in (("data", "data1"), ("ops", "ops1")):
        toy.hosts[group][name] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    toy.write("toy.yml", [toy.play("all")])
    code, said = toy.run(*ACT)
    assert code == 0, said
    assert "silent   data1, ops1" in said
    assert toy.written == ["one", "two", "three"]
    assert names(toy)[-1] == "finished" and not toy.copy.exists()


def test_a_failed_proof_fails_the_run_and_is_repeated_alone(toy: Toy) -> None:
    toy.edge.forgets = True
    code, said = toy.run(*ACT)
    assert code == 2
    assert "No write and read through the edge within 2 s: edge1: " in said and "404 instead of 200" in said
    toy.edge.forgets = False
    code, said = toy.run(*ACT)
    assert code == 0, said
    assert toy.written == ["one", "two", "three"]
    assert names(toy)[-2:] == ["resumed", "finished"]


# Interrupted


@pytest.mark.parametrize("place", ["one-before", "two-after", "three-before"])
def test_a_killed_run_goes_on_where_it_was(toy: Toy, place: str) -> None:
    """Killed with everything it had started, before or after a stage had its effect."""
    stage, _, when = place.partition("-")
    done = list(toy.stages[: toy.stages.index(stage)])
    process = held(toy, place)
    process.end()
    release(toy, place)
    # A plan that is made anew would be another one by now.
    toy.plan(loss="everything")
    code, said = toy.run(*ACT)
    assert code == 0, said
    assert f"interrupted in stage {stage}" in said
    for number, name in enumerate(toy.stages, 1):
        assert (f"{number}. {name}: Write {name} (done" in said) == (name in done)
    assert "loss     nothing" in said
    again = [stage] if when == "after" else []
    assert toy.written == [*done, *again, *toy.stages[len(done) :]]
    assert toy.events()[-1]["outcome"] == {"one": "red", "two": "red", "three": "red"}
    ends = [f"done {name}" for name in toy.stages]
    assert [name for name in names(toy) if "stage" not in name] == [
        "begun", *ends[: len(done)], "resumed", *ends[len(done) :], "finished"
    ]  # fmt: skip


def test_a_failed_stage_is_tried_again_with_the_same_arguments_only(toy: Toy) -> None:
    (toy.folder / "fail-two").touch()
    code, said = toy.run(*ACT)
    assert code == 2 and toy.written == ["one", "two"], said
    (toy.folder / "fail-two").unlink()

    code, said = toy.run(*ACT, "-e", "colour=blue")
    assert code == 2
    for text in ("was interrupted in stage two", "colour=red, this one with colour=blue", "-e restart=true", "one"):
        assert text in said
    assert toy.written == ["one", "two"]

    code, said = toy.run(*ACT, "-e", "colour=blue", "-e", "restart=true")
    assert code == 0, said
    assert toy.written == ["one", "two", "one", "two", "three"]
    assert [event["event"] for event in toy.events()][3:6] == ["stage", "abandoned", "begun"]
    assert toy.events()[-1]["outcome"] == {"one": "blue", "two": "blue", "three": "blue"}


def test_somebody_else_goes_on_from_another_controller(toy: Toy) -> None:
    (toy.folder / "fail-two").touch()
    toy.run(*ACT)
    (toy.folder / "fail-two").unlink()
    shutil.rmtree(toy.record.parent)
    code, said = toy.run(*ACT)
    assert code == 0, said
    assert "1. one: Write one (done" in said
    assert toy.written == ["one", "two", "two", "three"]
    assert names(toy)[0] == "begun" and names(toy)[-1] == "finished"


# Two at once


def test_a_second_person_is_told_and_changes_nothing(toy: Toy) -> None:
    process = held(toy, "one-before")
    try:
        # Consent to a run without a lock is no way around somebody's.
        code, said = toy.run(*ACT, "-e", "without_lock=true")
        assert code == 2
        assert f"The fleet is locked by {holder()} for toy since " in said and f"-e break_lock={holder()}" in said
        code, said = toy.run(*ACT, "-e", "break_lock=somebody@else")
        assert code == 2 and "break_lock names somebody@else, who does not have it" in said
        # To look is free, and shows who acts.
        code, said = toy.run()
        assert code == 2 and f"lock     The fleet is locked by {holder()} for toy" in said
        assert toy.written == []
        release(toy, "one-before")
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
    finally:
        process.end()
    assert toy.written == ["one", "two", "three"]


def test_whose_lock_was_broken_stops_before_the_next_stage(toy: Toy) -> None:
    process = held(toy, "one-after")
    try:
        assert acquire(toy.etcd.client, Claim("bob@ctl1", "deploy v1.4.0", "now", "bob"), holder())
        release(toy, "one-after")
        said = process.communicate(timeout=120)[0]
    finally:
        process.end()
    assert process.returncode == 2
    assert "This run has lost the fleet lock: bob@ctl1 has it for deploy v1.4.0 since now." in said
    assert toy.written == ["one"] and names(toy)[-1] == "done one"


def test_a_killed_playbook_leaves_no_lock(toy: Toy) -> None:
    """Only ansible-playbook itself: what it had started goes on for a while, and so does nothing of the lock."""
    process = held(toy, "two-before")
    try:
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_for("the lock is free", lambda: look(toy.etcd.client) is None, timeout_s=30)
        assert time.monotonic() - killed < 10
    finally:
        process.end()


# Without etcd, without a backup


def test_without_a_quorum_only_consent_goes_on(toy: Toy) -> None:
    toy.etcd.signal(signal.SIGSTOP, "data1", "data2")
    code, said = toy.run(*ACT)
    assert code == 2
    assert "The fleet lock is not possible: etcd has no quorum (data1: " in said and "-e without_lock=true" in said
    assert untouched(toy)
    code, said = toy.run(*ACT, "-e", "without_lock=true")
    assert code == 0, said
    assert "lock     etcd has no quorum (data1: " in said
    assert toy.written == ["one", "two", "three"]


def proven(hours: int) -> str:
    """What the prover wrote some hours ago."""
    return json.dumps({"proven": False, "last_proven": {"at": time.time() - hours * 3600}})


def test_what_destroys_wants_a_fresh_proven_backup(toy: Toy) -> None:
    toy.write("toy.yml", [toy.play(needs_backup=True)])
    proof = toy.folder / "last.json"
    code, said = toy.run(*ACT)
    assert code == 2 and "toy destroys data, and no restore was ever proven. Nothing was changed." in said

    proof.write_text(proven(hours=49))
    code, said = toy.run(*ACT)
    assert code == 2 and "the last restore was proven 49 hours ago. Nothing was changed." in said
    assert untouched(toy)

    proof.write_text(proven(hours=47))
    code, said = toy.run(*ACT)
    assert code == 0, said

    proof.unlink()
    code, said = toy.run(*ACT, "-e", "accept_no_backup=true")
    assert code == 0, said
    assert "backup   no restore was ever proven" in said
