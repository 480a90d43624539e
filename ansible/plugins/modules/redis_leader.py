"""Say who leads a set of Redis servers, by asking all of them and their Sentinels; on request, change it.

    - name: Ask who leads
      redis_leader:
        members: [{name: data1, address: 192.0.2.31}]
        self: 192.0.2.31
        access: {port: 6379, sentinel_port: 26379, ca_file: /etc/arches/tls/ca.crt, user: admin, monitor: arches}
        passwords: ["..."]
        data_directory: /var/lib/redis
      register: __leader

state: `known` (the default) only asks. `led` waits until somebody leads, and after `patience` seconds lets this
member's Sentinel choose without asking the others (SENTINEL FAILOVER), however long the replicas have been without a
leader; with `alone` the leader then takes writes even though no replica follows, until its settings are compared with
git again. `handed_over` makes another member lead when this one does, without losing a write: writes wait (CLIENT
PAUSE) until the replicas have everything, the Sentinels choose one of them, and this member follows it at once, not
only when the Sentinels come to it (8 s later). `settled` waits until this member leads or follows without a gap, and
its Sentinel sees a quorum.

Result: leader (name and address), leads (whether it is this member), new (whether nobody led before: then the first
member by name is to lead), changed. An empty member is never named leader of members that have data: starting it
would wipe them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.resp import ConnectError, Connection, Reply, ReplyError

POLL_SECONDS = 0.1
# Writes go on by themselves after this, whatever becomes of us. By then the Sentinels have changed the former leader.
PAUSE_MS = 15_000
A_YEAR_MS = 365 * 86_400_000


class LeaderError(Exception):
    """Why nobody can be named leader, and what to do about it."""


class Member(t.NamedTuple):
    """One host of the set."""

    name: str
    address: str


class Access(t.NamedTuple):
    """How every member is spoken to. `monitor` is the name under which Sentinel knows the set."""

    port: int
    sentinel_port: int
    ca_file: str
    user: str
    passwords: list[str]
    monitor: str

    def server(self, address: str) -> Connection:
        """A connection to a member's Redis. Raises ConnectError."""
        return Connection(address, self.port, self.ca_file, self.user, self.passwords)

    def sentinel(self, address: str) -> Connection:
        """A connection to a member's Sentinel. Raises ConnectError."""
        return Connection(address, self.sentinel_port, self.ca_file, self.user, self.passwords)


class Answer(t.NamedTuple):
    """What one member said. `problems` are conversations that failed for another reason than a closed port."""

    address: str
    sentinel: tuple[int, str] | None = None  # configuration epoch, address of the leader
    role: str = ""  # master | slave | empty: not running
    upstream: str = ""  # of a slave
    in_sync: bool = False  # of a slave
    replicas: int = 0  # of a master
    problems: tuple[str, ...] = ()


def ask_sentinel(address: str, access: Access) -> tuple[int, str] | None:
    """Whom a member's Sentinel follows; None when it follows nobody yet. Raises ConnectError."""
    with access.sentinel(address) as sentinel:
        try:
            said = sentinel.table("SENTINEL", "MASTER", access.monitor)
        except ReplyError:
            return None
    return int(said["config-epoch"]), said["ip"]


def ask(member: Member, access: Access) -> Answer:
    """Ask one member's Redis and Sentinel."""
    answer, problems = Answer(member.address), []
    try:
        answer = answer._replace(sentinel=ask_sentinel(member.address, access))
    except ConnectError as error:
        problems += [] if error.refused else [str(error)]
    try:
        with access.server(member.address) as server:
            answer = read_role(answer, server.call("ROLE"))
    except ConnectError as error:
        problems += [] if error.refused else [str(error)]
    return answer._replace(problems=tuple(problems))


def read_role(answer: Answer, role: Reply) -> Answer:
    """The answer with what ROLE replied."""
    if not isinstance(role, list):
        return answer
    if role[0] == "master":
        replicas = role[2] if isinstance(role[2], list) else []
        return answer._replace(role="master", replicas=len(replicas))
    return answer._replace(role="slave", upstream=str(role[1]), in_sync=role[3] == "connected")


def ask_all(members: list[Member], access: Access) -> list[Answer]:
    """Ask all members at once."""
    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(lambda member: ask(member, access), members))


def find_leader(answers: list[Answer]) -> str | None:
    """Address of the leader that somebody reports, or None. Raises LeaderError when reports contradict each other."""
    votes = [answer.sentinel for answer in answers if answer.sentinel]
    if votes:
        return max(votes)[1]  # the newest configuration is what the Sentinels agreed on last
    followed = {answer.upstream for answer in answers if answer.role == "slave"}
    leading = {answer.address for answer in answers if answer.role == "master"}
    found = followed or leading
    if len(found) > 1:
        raise LeaderError(
            f"No Sentinel runs, and {' and '.join(sorted(found))} all count as leaders. Nothing was changed. "
            f"Stop redis-server where the data may go, delete /var/lib/redis/appendonlydir there, repeat the run."
        )
    return found.pop() if found else None


def choose_first(members: list[Member], answers: list[Answer]) -> str:
    """The leader of a set that nobody leads: the first by name. Raises LeaderError when silence may hide a leader."""
    problems = [problem for answer in answers for problem in answer.problems]
    if problems:
        raise LeaderError(
            f"Nobody reports a Redis leader, but one may be hidden: {'; '.join(problems)}. Nothing was changed. "
            f"Make these members reachable, or take them out of the inventory, and repeat the run for all data hosts."
        )
    return min(members).address


def is_dangerous(leader: str, own: Answer, empty: bool, members: list[Member]) -> bool:
    """Whether starting this member now would make an empty server the leader of a set that has data."""
    return leader == own.address and empty and not own.role and len(members) > 1


def wait_for(condition: t.Callable[[], t.Any], seconds: float, otherwise: str) -> t.Any:
    """The condition's first true value. Raises LeaderError with `otherwise` and the last problem after `seconds`."""
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (ConnectError, ReplyError) as error:
            last = f" Last answer: {error}"
        time.sleep(POLL_SECONDS)
    raise LeaderError(f"{otherwise} (waited {seconds:.0f} s).{last}")


def has_everything(role: Reply) -> bool:
    """Whether all replicas that a leader's ROLE lists have acknowledged all that it has written."""
    if not isinstance(role, list) or role[0] != "master" or not isinstance(role[2], list):
        return False
    acknowledged = [int(str(replica[2])) for replica in role[2] if isinstance(replica, list)]
    return bool(acknowledged) and min(acknowledged) >= int(str(role[1]))


def follow(server: Connection, leader: str, port: int) -> None:
    """Make a server follow another, as a Sentinel does: its clients have to ask anew who leads."""
    server.call("MULTI")
    server.call("REPLICAOF", leader, port)
    server.call("CONFIG", "REWRITE")
    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    server.call("CLIENT", "UNPAUSE")
    server.call("EXEC")


class Set:
    """The members as seen from one of them."""

    def __init__(self, members: list[Member], own: str, access: Access, empty: bool, seconds: float) -> None:
        self.members, self.own, self.access, self.empty, self.seconds = members, own, access, empty, seconds

    def name(self, address: str) -> str:
        """The member's name, or its address when it is none of the members."""
        return next((member.name for member in self.members if member.address == address), address)

    def known(self, check: bool) -> tuple[str, bool]:
        """The leader's address and whether it was only chosen now. Raises LeaderError."""
        answers = ask_all(self.members, self.access)
        leader = find_leader(answers)
        if leader is None:
            return (min(self.members).address if check else choose_first(self.members, answers)), True
        own = next(answer for answer in answers if answer.address == self.own)
        if not check and is_dangerous(leader, own, self.empty, self.members):
            leader = wait_for(self._other_leader, self.seconds, self._refuse_empty())
        return leader, False

    def handed_over(self) -> bool:
        """Make another member lead if this one does; True when that was needed. Raises LeaderError."""
        if len(self.members) == 1 or ask(Member("", self.own), self.access).role != "master":
            return False
        wait_for(self._may_hand_over, self.seconds, f"{self.name(self.own)} cannot hand over")
        with self.access.server(self.own) as server:
            server.call("CLIENT", "PAUSE", PAUSE_MS, "WRITE")
            try:
                caught_up = f"The replicas of {self.name(self.own)} do not catch up; it goes on"
                wait_for(lambda: has_everything(server.call("ROLE")), PAUSE_MS / 3000, caught_up)
                wait_for(self._start_failover, PAUSE_MS / 3000, "The Sentinel starts no failover")
            except LeaderError:
                server.call("CLIENT", "UNPAUSE")
                raise
            # From here on writes stay where they are: nobody can say that they would not be lost.
            new = wait_for(self._chosen, self.seconds, f"{self.name(self.own)} still leads after SENTINEL FAILOVER")
            follow(server, new, self.access.port)
        wait_for(self._took_over, self.seconds, f"{self.name(self.own)} does not follow {self.name(new)}")
        return True

    def take_writes_alone(self) -> None:
        """The leader waits for no replica. Raises LeaderError, ConnectError or ReplyError."""
        leader = find_leader(ask_all(self.members, self.access))
        if leader is None:
            raise LeaderError("Nobody leads, so nobody can take writes.")
        with self.access.server(leader) as server:
            server.call("CONFIG", "SET", "min-replicas-to-write", 0)

    def led(self, patience: float) -> bool:
        """Make somebody lead; True when this member's Sentinel had to choose alone. Raises LeaderError."""
        with contextlib.suppress(LeaderError):
            wait_for(self._leads_somewhere, patience, "Nobody leads")
            return False
        with self.access.sentinel(self.own) as sentinel:
            down_after = sentinel.table("SENTINEL", "MASTER", self.access.monitor)["down-after-milliseconds"]
            # A Sentinel takes no replica that was without its leader for more than ten times this.
            sentinel.call("SENTINEL", "SET", self.access.monitor, "down-after-milliseconds", A_YEAR_MS)
            try:
                wait_for(self._start_failover, self.seconds, f"The Sentinel of {self.name(self.own)} chooses nobody")
                wait_for(self._leads_somewhere, self.seconds, "Nobody leads after SENTINEL FAILOVER")
            finally:
                sentinel.call("SENTINEL", "SET", self.access.monitor, "down-after-milliseconds", down_after)
        return True

    def settled(self) -> None:
        """Wait until this member serves its part. Raises LeaderError."""
        wait_for(self._serves, self.seconds, f"{self.name(self.own)} neither leads nor follows in sync")

    def _other_leader(self) -> str | None:
        leader = find_leader(ask_all(self.members, self.access))
        return leader if leader != self.own else None

    def _leads_somewhere(self) -> bool:
        answers = {answer.address: answer for answer in ask_all(self.members, self.access)}
        leader = find_leader(list(answers.values()))
        return leader in answers and answers[leader].role == "master"

    def _start_failover(self) -> Reply:
        with self.access.sentinel(self.own) as sentinel:
            return sentinel.call("SENTINEL", "FAILOVER", self.access.monitor)

    def _may_hand_over(self) -> bool:
        with self.access.sentinel(self.own) as sentinel:
            sentinel.call("SENTINEL", "CKQUORUM", self.access.monitor)
        others = [member for member in self.members if member.address != self.own]
        return any(answer.in_sync for answer in ask_all(others, self.access))

    def _chosen(self) -> str | None:
        answers = {answer.address: answer for answer in ask_all(self.members, self.access)}
        said = [answer.sentinel[1] for answer in answers.values() if answer.sentinel]
        new = max(said, key=said.count, default=self.own)
        agreed = said.count(new) > len(self.members) // 2
        return new if agreed and new != self.own and answers[new].role == "master" else None

    def _took_over(self) -> bool:
        answers = {answer.address: answer for answer in ask_all(self.members, self.access)}
        own = answers[self.own]
        new = answers.get(own.upstream)
        agreed = [answer for answer in answers.values() if answer.sentinel and answer.sentinel[1] == own.upstream]
        return bool(own.in_sync and new and new.role == "master" and len(agreed) > len(self.members) // 2)

    def _serves(self) -> bool:
        own = ask(Member("", self.own), self.access)
        with self.access.server(self.own) as server:
            server.call("PING")  # refused while it still loads its data
        if len(self.members) > 1:
            with self.access.sentinel(self.own) as sentinel:
                sentinel.call("SENTINEL", "CKQUORUM", self.access.monitor)
        return own.role == "master" or own.in_sync

    def _refuse_empty(self) -> str:
        return (
            f"{self.name(self.own)} has no Redis data, yet the others take it for their leader; started now it would "
            f"wipe their data. Nothing was changed. See why the Sentinels choose no other: on another data host, "
            f"journalctl -u redis-sentinel"
        )


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "members": {"type": "list", "elements": "dict", "required": True},
            "self": {"type": "str", "required": True},
            "access": {"type": "dict", "required": True},
            "passwords": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "data_directory": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["known", "handed_over", "led", "settled"], "default": "known"},
            "alone": {"type": "bool", "default": False},
            "patience": {"type": "float", "default": 20.0},  # seconds; a failover of the Sentinels' own takes less
            "timeout": {"type": "float", "default": 60.0},  # seconds
        },
        supports_check_mode=True,
    )
    given = module.params
    members = [Member(member["name"], member["address"]) for member in given["members"]]
    if given["self"] not in [member.address for member in members]:
        module.fail_json(
            msg=f"{given['self']} is none of the members. Add it to redis_members, or correct redis_address."
        )
    access = Access(passwords=given["passwords"], **given["access"])
    empty = not os.path.isdir(os.path.join(given["data_directory"], "appendonlydir"))
    everyone = Set(members, given["self"], access, empty, given["timeout"])
    changed = False
    try:
        if given["state"] == "handed_over" and not module.check_mode:
            changed = everyone.handed_over()
        elif given["state"] == "led" and not module.check_mode:
            changed = everyone.led(given["patience"])
            if given["alone"]:
                everyone.take_writes_alone()
        elif given["state"] == "settled" and not module.check_mode:
            everyone.settled()
        leader, new = everyone.known(module.check_mode)
    except (LeaderError, ConnectError, ReplyError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=changed,
        leader={"name": everyone.name(leader), "address": leader},
        leads=leader == given["self"],
        new=new,
    )


if __name__ == "__main__":
    main()
