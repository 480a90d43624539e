"""Whom the Redis hosts take for their leader, and when they refuse to guess."""

import sys

import pytest

import resp
from lib.plugins import load_plugin

sys.modules["ansible.module_utils.resp"] = resp  # as Ansible ships it to a host

leader = load_plugin("modules", "redis_leader")
Answer, Member = leader.Answer, leader.Member

MEMBERS = [Member("data2", "b"), Member("data1", "a"), Member("data3", "c")]


def test_newest_configuration_of_a_sentinel_wins() -> None:
    answers = [Answer("a", sentinel=(3, "b"), role="master"), Answer("b", sentinel=(7, "c")), Answer("c")]
    assert leader.find_leader(answers) == "c"


def test_without_sentinels_replicas_say_whom_they_follow() -> None:
    answers = [Answer("a", role="master"), Answer("b", role="slave", upstream="c"), Answer("c")]
    assert leader.find_leader(answers) == "c"


def test_interrupted_first_run_goes_on_with_the_leader_that_runs() -> None:
    assert leader.find_leader([Answer("a"), Answer("b", role="master"), Answer("c")]) == "b"


def test_two_leaders_without_sentinels_stop_the_run() -> None:
    with pytest.raises(leader.LeaderError, match="a and b all count as leaders"):
        leader.find_leader([Answer("a", role="master"), Answer("b", role="master")])


def test_empty_set_is_led_by_the_first_by_name() -> None:
    answers = [Answer("a"), Answer("b"), Answer("c")]
    assert leader.find_leader(answers) is None
    assert leader.choose_first(MEMBERS, answers) == "a"


def test_silence_may_hide_a_leader() -> None:
    silent = Answer("c", problems=("c:6379 does not answer: timed out",))
    with pytest.raises(leader.LeaderError, match="c:6379 does not answer: timed out"):
        leader.choose_first(MEMBERS, [Answer("a"), Answer("b"), silent])


@pytest.mark.parametrize(
    ("own", "empty", "dangerous"),
    [
        (Answer("a"), True, True),
        (Answer("a"), False, False),  # it comes back with its data
        (Answer("a", role="master"), True, False),  # it runs, so it is what the others follow
        (Answer("b"), True, False),  # somebody else leads
    ],
)
def test_empty_host_is_not_started_as_leader(own: object, empty: bool, dangerous: bool) -> None:
    assert leader.is_dangerous("a", own, empty, MEMBERS) is dangerous


@pytest.mark.parametrize(
    ("role", "everything"),
    [
        (["master", 90, [["b", "6379", "90"], ["c", "6379", "95"]]], True),
        (["master", 90, [["b", "6379", "90"], ["c", "6379", "89"]]], False),  # the Sentinels might choose c
        (["master", 90, []], False),
        (["slave", "a", 6379, "connected", 90], False),
    ],
)
def test_a_leader_hands_over_when_every_replica_has_everything(role: list[object], everything: bool) -> None:
    assert leader.has_everything(role) is everything


def test_roles_are_read() -> None:
    assert leader.read_role(Answer("a"), ["master", 9, [["b", "6379", "9"]]]).replicas == 1
    replica = leader.read_role(Answer("b"), ["slave", "a", 6379, "connected", 9])
    assert (replica.upstream, replica.in_sync) == ("a", True)
    assert not leader.read_role(Answer("b"), ["slave", "a", 6379, "sync", 9]).in_sync
