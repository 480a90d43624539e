"""Say how a host's units are, and which release its API serves. Asks only, on the host itself.

    - name: Ask every host about its units
      host_state:
        units: [etcd.service, patroni.service]
        api_url: http://203.0.113.21:8080      # optional

Result: units (state by name), missing_units (names that systemd has no file for), failed_units (names, whoever they
belong to), release, ready.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.json_https import NoAnswer, ask


def unit_states(shown: str) -> dict[str, str]:
    """State by name from the output of `systemctl show --property=Id,ActiveState,LoadState`."""
    blocks = (dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n"))
    return {block["Id"]: block["ActiveState"] for block in blocks if "Id" in block}


def missing_units(shown: str) -> list[str]:
    """Names from the same output, with LoadState, of units that are not installed."""
    blocks = (dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n"))
    return [block["Id"] for block in blocks if block.get("LoadState") == "not-found"]


def api_state(url: str | None) -> dict[str, t.Any]:
    """Which release the API serves, and whether it can do its work; both None where there is no API."""
    if url is None:
        return {"release": None, "ready": None}
    state: dict[str, t.Any] = {"release": None, "ready": False}
    for path, ready in (("/health/live", False), ("/health/ready", True)):
        try:
            answer = ask(url + path, timeout=3)
        except NoAnswer:
            break
        if answer.status == 200 and isinstance(answer.body, dict):
            state = {"release": answer.body.get("release"), "ready": ready}
    return state


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "api_url": {"type": "str"},
        },
        supports_check_mode=True,
    )
    units, url = module.params["units"], module.params["api_url"]
    shown = (
        ""
        if not units
        else module.run_command(
            ["systemctl", "show", "--property=Id,ActiveState,LoadState", "--", *units], check_rc=True
        )[1]
    )
    failed = module.run_command(["systemctl", "list-units", "--failed", "--plain", "--no-legend"], check_rc=True)[1]
    module.exit_json(
        changed=False,
        units=unit_states(shown),
        missing_units=missing_units(shown),
        failed_units=[line.split()[0] for line in failed.splitlines() if line.strip()],
        **api_state(url),
    )


if __name__ == "__main__":
    main()
