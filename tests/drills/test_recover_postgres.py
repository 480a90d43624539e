"""Mistakes in the database are undone on the running fleet, by the playbooks that on-call would type, under load.

Marked `long`, for `make test-full`: interruptions, a store that is away, the way back, and every bad input.
"""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from drills.recovering import keep, words
from lib.client import edge_client, register_and_login
from lib.fleet import BIN, REPOSITORY, Fleet
from lib.history import History, Outcome, WriteLoad, lost
from lib.leaders import leader
from lib.postgres import sql
from lib.waiting import wait_for

ROWS, REWIND = "ansible/recover/postgres-restore-row.yml", "ansible/recover/postgres-rewind-cluster.yml"
STORE = "arches-versitygw"


class Users:
    """Artifacts of two people: one writes all the time, the other one's are what the mistake hits."""

    def __init__(self, fleet: Fleet, folder: Path, repeat: int) -> None:
        self.fleet, self.history, self.repeat = fleet, History(folder / "history.jsonl"), repeat
        with edge_client(fleet) as client:
            self.writer, self.victim = register_and_login(client), register_and_login(client)
        self._client = edge_client(fleet, timeout_s=10)

    def write(self, key: str) -> tuple[Outcome, str | None]:
        """One artifact of the writer. A refused request is a failure, a broken one is unknown."""
        return self.create(key, self.writer)

    def create(self, key: str, who: dict[str, str]) -> tuple[Outcome, str | None]:
        """One artifact."""
        try:
            answer = self._client.post("/v1/artifacts", json={"name": key, "text": f"text of {key}"}, headers=who)
        except httpx.ConnectError:
            return "fail", None
        except httpx.HTTPError:
            return "unknown", None
        if answer.status_code == 201:
            return "ok", answer.json()["id"]
        return ("fail", None) if answer.status_code in (429, 503) else ("unknown", None)

    def victims(self, count: int) -> dict[str, str]:
        """New artifacts of the other person: name by id."""
        made = {key: self.create(key, self.victim) for key in (f"victim-{n}" for n in range(count))}
        assert all(outcome == "ok" for outcome, _ in made.values()), made
        return {str(identity): key for key, (_, identity) in made.items()}

    def read(self, who: dict[str, str], identity: str) -> str | None:
        """An artifact's text, None for one that is not there."""
        answer = self._client.get(f"/v1/artifacts/{identity}", headers=who)
        assert answer.status_code in (200, 404), answer.text
        return str(answer.json()["text"]) if answer.status_code == 200 else None

    def whole(self, victims: dict[str, str]) -> bool:
        """Whether the other person's artifacts are as they were written."""
        return all(self.read(self.victim, identity) == f"text of {key}" for identity, key in victims.items())

    def stored(self) -> set[str]:
        """Which of the writer's acknowledged artifacts are there."""
        return {i for i in self.history.acknowledged().values() if self.read(self.writer, i) is not None}

    @contextmanager
    def load(self) -> Iterator[None]:
        """The writer writes, before and after whatever happens here."""
        with WriteLoad(self.history, self.write):
            self.goes_on()
            yield
            self.goes_on()

    def goes_on(self) -> None:
        """Wait until the writer has had some success from now on."""
        before = self.history.counts()["ok"]
        wait_for("writes go on", lambda: self.history.counts()["ok"] >= before + 30, timeout_s=60)


def moment(fleet: Fleet) -> str:
    """The leader's time as on-call types it; nothing else is between it and what follows."""
    return sql(fleet, "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\\\"T\\\"HH24:MI:SS.US+00')")


def ids(victims: dict[str, str]) -> str:
    """Identities for SQL."""
    return ", ".join(f"'{identity}'" for identity in victims)


def recover(fleet: Fleet, playbook: str, arguments: dict[str, str]) -> str:
    """Run a recovery playbook to its good end, whatever a drill before it has left; returns what it said."""
    return " ".join(fleet.playbook(playbook, *words(**arguments, restart="true")).output.split())


def go_on(fleet: Fleet, playbook: str, arguments: dict[str, str]) -> str:
    """Run it once more after an interruption."""
    return " ".join(fleet.playbook(playbook, *words(**arguments)).output.split())


def said(fleet: Fleet, playbook: str, arguments: dict[str, str]) -> str:
    """What a recovery playbook says, however it ends; in one line."""
    return " ".join(fleet.playbook(playbook, *words(**arguments, restart="true"), check=False).output.split())


def killed_in(fleet: Fleet, playbook: str, arguments: dict[str, str], stage: str) -> None:
    """Start a recovery playbook and kill it, with all that belongs to it on this computer, in the middle of a stage."""
    record = fleet.state / "recover" / f"{Path(playbook).stem}.jsonl"
    already = record.read_text().count("\n") if record.exists() else 0

    def begun() -> bool:
        lines = record.read_text().splitlines()[already:] if record.exists() else []
        return any(json.loads(line).get("stage") == stage for line in lines)

    process = subprocess.Popen(
        [BIN / "ansible-playbook", playbook, "-i", fleet.inventory, *words(**arguments, restart="true")],
        cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"the stage {stage} has begun", begun, timeout_s=240)
        if stage == "restore":
            host = json.loads(record.read_text().splitlines()[already])["plan"]["decided"]["host"]
            wait_for(
                "files of the backup arrive",
                lambda: fleet.ssh(host, "ls -d /var/lib/postgresql/17/arches.rewound-*/base", check=False).stdout,
                timeout_s=60,
            )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def proven(fleet: Fleet) -> Fleet:
    """The fleet with a backup, from which a restore was just proven."""
    acting = leader(fleet)
    if not fleet.ssh(acting, "runuser -u postgres -- pgbackrest --stanza=arches info | grep 'backup:'", False).stdout:
        fleet.ssh(acting, "systemctl start arches-backup@full", timeout_s=300)
    fleet.ssh(fleet.groups["ops"][0], "systemctl start arches-prover", timeout_s=300)
    return fleet


@pytest.fixture
def users(proven: Fleet, healthy: Fleet, tmp_path: Path, repeat: int) -> Iterator[Users]:
    """People with artifacts, on a healthy fleet. Whatever becomes of the test, nothing is set aside afterwards."""
    yield Users(healthy, tmp_path, repeat)
    data = "/var/lib/postgresql/17/arches"
    kept = [h for h in healthy.groups["data"] if healthy.ssh(h, f"ls -d {data}.before-*", check=False).stdout]
    confirm = {"confirm": environment(healthy)}
    if any(not healthy.ssh(h, f"ls -d {data}", check=False).stdout for h in kept):
        recover(healthy, REWIND, {"undo": "true", **confirm})
    if kept:
        wait_for("the fleet is healthy", healthy.healthy, timeout_s=180, interval_s=1)
        recover(healthy, REWIND, {"forget": "true", **confirm})


def environment(fleet: Fleet) -> str:
    """What on-call types to confirm."""
    return str(next(iter(fleet.variables.values()))["environment_name"])


def test_deleted_rows_come_back_while_writes_go_on(users: Users) -> None:
    fleet = users.fleet
    with users.load():
        victims = users.victims(50)
        at = moment(fleet)
        sql(fleet, f"DELETE FROM artifacts WHERE id IN ({ids(victims)})")
        rows = {"tables": "artifacts,embedding_jobs", "at": at}
        began = time.monotonic()
        report = recover(fleet, ROWS, rows)
        looked = time.monotonic()
        assert "artifacts: 50 only then (missing now), 0 different" in report
        assert not any(users.read(users.victim, identity) for identity in victims), "a dry run brings nothing back"
        report = recover(fleet, ROWS, {**rows, "apply": "true", "confirm": environment(fleet)})
        ended = time.monotonic()
        assert "50 brought back" in report
    assert users.whole(victims)
    assert lost(users.history, users.stored()) == []
    keep(
        "postgres-restore-row",
        users.repeat,
        looked_in_s=round(looked - began),
        recovered_in_s=round(ended - looked),
        gap_s=round(users.history.longest_gap_s(began, ended), 1),
        lost=0,
        **users.history.counts(),
    )


@pytest.mark.long
def test_a_wrong_update_is_undone_by_a_rewind(users: Users) -> None:
    """Also a dropped table: what only the whole database knows comes back with it."""
    fleet = users.fleet
    with users.load():
        victims = users.victims(20)
        before = time.monotonic()
        at = moment(fleet)
        after = time.monotonic()
        sql(fleet, "UPDATE artifacts SET content = 'oops'", "DROP TABLE refresh_tokens CASCADE")
        users.goes_on()
        began = time.monotonic()
        recover(fleet, REWIND, {"at": at, "confirm": environment(fleet)})
        ended = time.monotonic()
        with edge_client(fleet) as client:
            register_and_login(client)  # needs the table that was dropped
    events = users.history.entries
    invoked = {e.key: e.at for e in events if e.event == "invoke"}
    stored = users.stored()
    assert users.whole(victims)
    assert [e.key for e in events if e.event == "ok" and e.at < before and e.value not in stored] == []
    undone = [e.key for e in events if e.event == "ok" and after < invoked[e.key] and e.at < began]
    assert undone, "nothing was acknowledged between the mistake and the rewind"
    assert not {users.history.acknowledged()[key] for key in undone} & stored, "a rewind brings back what it should not"
    assert [e.key for e in events if e.event == "ok" and invoked[e.key] > ended and e.value not in stored] == []
    members = fleet.status()[1]["postgres"]
    assert members["sync"], "nobody follows synchronously"
    keep(
        "postgres-rewind-cluster",
        users.repeat,
        recovered_in_s=round(ended - began),
        gap_s=round(users.history.longest_gap_s(began, ended), 1),
        undone=len(undone),
        **users.history.counts(),
    )


BAD = {
    "too early": (ROWS, {"tables": "artifacts", "at": "2020-01-01T00:00:00+00"}, "Choose a time from 20"),
    "in the future": (REWIND, {"at": "2099-01-01T00:00:00+00"}, "is in the future. Choose a time from 20"),
    "no time": (REWIND, {"at": "yesterday"}, "at: `yesterday` is no time; write -e at=2026-01-01T10:00:00+00"),
    "no time zone": (ROWS, {"tables": "artifacts", "at": "2026-01-01T10:00:00"}, "has no time zone"),
    "another environment": (REWIND, {"at": "2099-01-01T00:00:00+00", "confirm": "prod"}, "but this inventory is"),
    "no such table": (ROWS, {"tables": "artefacts", "at": "NOW"}, "there is no such table now; there are"),
    "no primary key": (ROWS, {"tables": "drill_keyless", "at": "NOW"}, "it has no primary key"),
    "no argument": (ROWS, {"table": "artifacts"}, "does not know table. It takes"),
    "nothing set aside": (REWIND, {"undo": "true", "confirm": "ENVIRONMENT"}, "No data directory is set aside"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence_and_changes_nothing(case: str, proven: Fleet) -> None:
    playbook, arguments, says = BAD[case]
    sql(proven, "CREATE TABLE IF NOT EXISTS drill_keyless (a integer)")
    try:
        before = sql(proven, "SELECT timeline_id, system_identifier FROM pg_control_checkpoint(), pg_control_system()")
        known = {"ENVIRONMENT": environment(proven), "NOW": moment(proven)}
        arguments = {name: known.get(value, value) for name, value in arguments.items()}
        report = said(proven, playbook, arguments)
        assert says in report, report[-2000:]
        assert (
            sql(proven, "SELECT timeline_id, system_identifier FROM pg_control_checkpoint(), pg_control_system()")
            == before
        )
    finally:
        sql(proven, "DROP TABLE drill_keyless")


@pytest.mark.long
def test_a_full_disk_is_said_before_anything_is_restored(proven: Fleet) -> None:
    ops, home = proven.groups["ops"][0], "/var/lib/arches-copy"
    proven.ssh(ops, f"mkdir -p {home} && mount -t tmpfs -o size=64m drill {home}")
    try:
        report = said(proven, ROWS, {"tables": "artifacts", "at": moment(proven)})
    finally:
        proven.ssh(ops, f"umount {home}")
    assert f"{home} has 64.0 MiB free, the copy needs" in report


@pytest.mark.long
def test_a_store_that_refuses_the_account_is_said_and_the_same_command_goes_on(users: Users) -> None:
    fleet, ops = users.fleet, users.fleet.groups["ops"][0]
    rows = {"tables": "artifacts", "at": moment(fleet)}
    config = "/etc/arches-prover/pgbackrest.conf"
    fleet.ssh(ops, f"cp -p {config} {config}.drill && sed -i 's/^repo1-s3-key-secret=.*/&x/' {config}")
    try:
        report = said(fleet, ROWS, rows)
    finally:
        fleet.ssh(ops, f"mv {config}.drill {config}")
    assert "The store refuses the account" in report, report[-2000:]
    assert "resumes the run of" in go_on(fleet, ROWS, rows)


def mistake(fleet: Fleet, victims: dict[str, str], kind: str) -> str:
    """Delete artifacts; returns what leads to just before, as the argument of that kind."""
    point = f"drill_{secrets.token_hex(4)}"
    at = moment(fleet)
    sql(fleet, f"SELECT pg_create_restore_point('{point}')")
    delete = f"DELETE FROM artifacts WHERE id IN ({ids(victims)}) RETURNING pg_current_xact_id()::xid"
    return {"at": at, "point": point, "xid": sql(fleet, delete).splitlines()[0]}[kind]


@pytest.mark.long
@pytest.mark.parametrize(("stage", "kind"), [("stop", "at"), ("restore", "xid"), ("lead", "point"), ("follow", "at")])
def test_an_interrupted_rewind_goes_on_with_the_same_command(users: Users, stage: str, kind: str) -> None:
    fleet = users.fleet
    with users.load():
        victims = users.victims(5)
        arguments = {kind: mistake(fleet, victims, kind), "confirm": environment(fleet)}
        killed_in(fleet, REWIND, arguments, stage)
        assert f"interrupted in stage {stage}" in go_on(fleet, REWIND, arguments)
    assert users.whole(victims)


@pytest.mark.long
def test_an_interrupted_rewind_can_be_taken_back(users: Users) -> None:
    fleet = users.fleet
    with users.load():
        arguments = {"at": moment(fleet), "confirm": environment(fleet)}
        killed_in(fleet, REWIND, arguments, "restore")
        recover(fleet, REWIND, {"undo": "true", "confirm": environment(fleet)})
    assert lost(users.history, users.stored()) == []


@pytest.mark.long
def test_a_store_that_is_away_for_a_while_only_delays_a_rewind(users: Users) -> None:
    fleet, ops = users.fleet, users.fleet.groups["ops"][0]
    victims = users.victims(5)
    arguments = {"at": moment(fleet), "confirm": environment(fleet)}
    sql(fleet, f"DELETE FROM artifacts WHERE id IN ({ids(victims)})")
    killed_in(fleet, REWIND, arguments, "restore")
    # Comes back by itself, however the test ends.
    fleet.ssh(ops, f"systemctl stop {STORE}; systemd-run --on-active=180 systemctl start {STORE}")
    began = time.monotonic()
    go_on(fleet, REWIND, arguments)
    keep("rewind-store-away", users.repeat, recovered_in_s=round(time.monotonic() - began), store_away_s=180)
    assert users.whole(victims)
