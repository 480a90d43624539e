"""Let a Patroni member step aside, lead, or be copied anew, or wait until it does its part again.

    - name: Hand leadership over
      patroni_member: {name: data1, state: spare, rest: {url: ..., ca: ..., username: ..., password: ...}}

`spare`: the member does not lead (a synchronous standby took over if it did; `candidate` names one) and, unless it is
the only one (`alone: true`), the others have a leader and a synchronous standby, so that it may be stopped. `in_place`:
it leads, or streams and counts as a synchronous standby. `copied`: its data directory was copied from the leader in
this run. `led`: somebody leads; if nobody does so by itself within `patience_s`, this member is made the leader, or,
when it does not run, the running one that has most. `followed`: it leads and a synchronous standby follows it.

Result: changed, leader (the new one, if leadership moved).
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.json_https import NoAnswer
from ansible.module_utils.patroni import REST, Patroni, PatroniError, connect


def step_aside(patroni: Patroni, name: str, candidate: str | None, seconds: float, check: bool) -> dict[str, t.Any]:
    """Hand over if needed and wait until the others can do without this member. Raises PatroniError or NoAnswer."""
    if check:
        return {"changed": False, "leader": None}
    leader = patroni.hand_over(name, seconds, candidate)
    patroni.wait_for(
        f"the cluster can do without {name}: another leader with another synchronous standby",
        lambda: patroni.others_suffice(name),
        seconds,
    )
    return {"changed": leader is not None, "leader": leader}


def lead(patroni: Patroni, name: str, patience_s: float, seconds: float) -> dict[str, t.Any]:
    """Somebody leads in the end, by itself or as told. Raises PatroniError or NoAnswer."""
    with contextlib.suppress(PatroniError):
        leader = patroni.wait_for("a leader comes by itself", patroni.leader, patience_s)
        return {"changed": False, "leader": leader}
    return {"changed": True, "leader": patroni.promote(name, seconds)}


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "rest": REST,
            "state": {"choices": ["spare", "in_place", "copied", "led", "followed"], "required": True},
            "alone": {"type": "bool", "default": False},
            "candidate": {"type": "str"},
            "patience_s": {"type": "int", "default": 30},
            "timeout_s": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params = module.params
    patroni = connect(params["rest"])
    result: dict[str, t.Any] = {"changed": False, "leader": None}
    try:
        if params["state"] == "in_place":
            patroni.wait_for(
                f"{params['name']} is back in its place",
                lambda: patroni.in_place(synchronous=not params["alone"]),
                params["timeout_s"],
            )
        elif params["state"] == "followed":
            patroni.wait_for(
                f"a synchronous standby follows {params['name']}",
                lambda: patroni.is_followed(params["name"]),
                params["timeout_s"],
            )
        elif params["state"] == "copied":
            result["changed"] = True
            if not module.check_mode:
                patroni.copy_anew(params["timeout_s"])
        elif params["state"] == "led":
            result = lead(patroni, params["name"], params["patience_s"], params["timeout_s"])
        elif not params["alone"]:
            result = step_aside(patroni, params["name"], params["candidate"], params["timeout_s"], module.check_mode)
    except (PatroniError, NoAnswer) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
