"""etcd_member: what a host without data does, from what its peers say. Every wrong guess here could cost data."""

from __future__ import annotations

from typing import Any

import pytest

from lib.plugins import load_plugin

etcd_member = load_plugin("modules", "etcd_member")
Peer = etcd_member.Peer
OWN = "https://192.0.2.31:2380"
CLOSED = Peer("192.0.2.32", False, [], False)
SILENT = Peer("192.0.2.32", None, [], False)
WAITING = Peer("192.0.2.32", True, [], False)


def listed(number: int, started: bool = True) -> dict[str, Any]:
    """A member as its peers list it (on their own port: ids are numbers)."""
    address = f"192.0.2.{30 + number}"
    urls = [f"https://{address}:2379"] if started else []
    return {"id": number, "name": f"data{number}", "peerURLs": [f"https://{address}:2380"], "clientURLs": urls}


def knowing(*members: dict[str, Any], healthy: bool = True) -> Any:
    """A peer that answers with a list."""
    return Peer("192.0.2.32", True, list(members), healthy)


def decide(*peers: Any) -> Any:
    """The plan of data1 with data2 and data3 as given."""
    return etcd_member.decide("data1", OWN, {f"data{n}": peer for n, peer in enumerate(peers, 2)})


def test_members_found_a_cluster_where_nobody_listens() -> None:
    assert decide(CLOSED, CLOSED).kind == "found"


def test_a_single_member_founds_alone() -> None:
    assert etcd_member.decide("data1", OWN, {}).kind == "found"


def test_a_silent_host_may_hold_the_data() -> None:
    with pytest.raises(etcd_member.EtcdError, match=r"data3 .* does not answer.*Bring that host up"):
        decide(CLOSED, SILENT)


def test_a_peer_that_says_nothing_is_not_taken_for_nobody() -> None:
    with pytest.raises(etcd_member.EtcdError, match="journalctl"):
        decide(WAITING, CLOSED)


def test_a_founding_that_was_interrupted_goes_on() -> None:
    waiting = knowing(listed(1, False), listed(2, False), listed(3, False), healthy=False)
    assert decide(waiting, CLOSED).kind == "join"


def test_a_joining_that_was_interrupted_goes_on() -> None:
    peer = knowing(listed(1, False), listed(2), listed(3))
    assert decide(peer, peer).kind == "join"


def test_lost_data_mean_another_member() -> None:
    peer = knowing(listed(1), listed(2), listed(3))
    plan = decide(peer, peer)
    assert (plan.kind, plan.remove) == ("replace", "1")
    assert [member["name"] for member in plan.members] == ["data2", "data3"]


def test_a_removal_that_was_interrupted_goes_on() -> None:
    peer = knowing(listed(2), listed(3))
    assert decide(peer, peer).kind == "add"


@pytest.mark.parametrize("other", [CLOSED, SILENT, knowing(listed(1), listed(2), listed(3), healthy=False)])
def test_nobody_is_replaced_while_another_is_sick(other: Any) -> None:
    with pytest.raises(etcd_member.EtcdError, match=r"data3 .* is not healthy"):
        decide(knowing(listed(1), listed(2), listed(3)), other)


def test_the_majority_is_believed() -> None:
    outdated = knowing(listed(1), listed(2), listed(3), healthy=False)
    with pytest.raises(etcd_member.EtcdError, match="data2"):
        decide(outdated, knowing(listed(2), listed(3)))


def test_paper_of_a_founding_names_all() -> None:
    configured = {"data1": OWN, "data2": "https://192.0.2.32:2380"}
    paper = etcd_member.birth_certificate(etcd_member.Plan("found", None, []), "data1", OWN, configured)
    assert paper == (
        "ETCD_INITIAL_CLUSTER=data1=https://192.0.2.31:2380,data2=https://192.0.2.32:2380\n"
        "ETCD_INITIAL_CLUSTER_STATE=new\n"
    )


def test_paper_of_a_joining_names_the_live_members() -> None:
    plan = etcd_member.Plan("replace", "1", [listed(2), listed(4)])
    paper = etcd_member.birth_certificate(plan, "data1", OWN, {"data1": OWN, "data2": "https://192.0.2.32:2380"})
    assert paper == (
        "ETCD_INITIAL_CLUSTER=data1=https://192.0.2.31:2380,data2=https://192.0.2.32:2380,"
        "member-1=https://192.0.2.34:2380\nETCD_INITIAL_CLUSTER_STATE=existing\n"
    )
