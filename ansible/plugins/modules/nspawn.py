#!/usr/bin/python
"""Ansible module: local machines made of systemd-nspawn, a whole fleet in one call."""

import os
import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, env_fallback

DOCUMENTATION = r"""
module: nspawn
short_description: Local machines on this computer
description:
  - Brings a list of systemd-nspawn machines of one fleet into a state, all of them side by side.
  - Runs on the controller, as root. Machines that are not named stay as they are.
options:
  fleet:
    description: >-
      The fleet's C(id) names its bridge, nft tables and machines. C(subnet) is derived from it when missing.
    type: dict
    required: true
    options:
      id: {type: str, required: true, description: A short name.}
      subnet: {type: str, description: An IPv4 network in CIDR notation.}
  machines:
    description: >-
      The machines to act upon; an address is chosen when missing. Left out it means all that exist (not for
      C(present)).
    type: list
    elements: dict
    options:
      name: {type: str, required: true, description: The host's name.}
      address: {type: str, description: An address in the fleet's subnet.}
      memory_mb: {type: int, default: 1024, description: Limit of the whole machine, in MiB.}
      cpus: {type: float, default: 1, description: Limit of the whole machine, in cores.}
      volumes:
        description: File systems of a size of their own.
        type: list
        elements: dict
        default: []
        options:
          name: {type: str, required: true, description: Its name in the machine.}
          path: {type: str, required: true, description: Where it is mounted.}
          size_mb: {type: int, required: true, description: Its size in MiB; a machine that is off may get it larger.}
          keep: {type: bool, default: false, description: It stays when the machine is removed.}
  state:
    description:
      - C(present) makes, boots and heals what is needed and waits until C(ops) can log in.
      - C(absent) removes machines with their disks, without the volumes that are kept; with the last one the
        fleet's network goes too.
      - C(stopped) powers off properly, C(killed) cuts link and power at once; both keep the disk.
      - C(partitioned) cuts the links of running machines, C(healed) restores them.
    choices: [present, absent, stopped, killed, partitioned, healed]
    type: str
    default: present
  peers_only:
    description: With C(partitioned), cut a machine from the other machines only; this computer still reaches it.
    type: bool
    default: false
  delete_volumes:
    description: With C(absent), remove the volumes that are kept as well.
    type: bool
    default: false
  state_dir:
    description: Where the fleet's ssh key and known hosts lie. The fleet belongs to this directory's checkout.
    type: path
    required: true
  image:
    description: Folder with the definition of the image for new machines. Required with C(state=present).
    type: path
  home:
    description: Where machines and their disks live. Environment variable ARCHES_STATE.
    type: path
    default: /var/lib/arches
  cache:
    description: Where images are kept. Environment variable ARCHES_CACHE.
    type: path
    default: /var/cache/arches
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Two machines run
  nspawn:
    fleet: {id: demo}
    machines: [{name: a1}, {name: b1, memory_mb: 512}]
    state_dir: /tmp/demo
    image: ansible/image
"""

RETURN = r"""
machines:
  description: Per machine its C(address) and, with C(state=present), C(boot_seconds) (0 when it ran already).
  type: dict
  returned: success
actions:
  description: What was done, or would be in check mode, per machine; C(network) and C(image) may be among the keys.
  type: dict
  returned: success
kept:
  description: With C(absent), the names of the volumes that stay, per machine.
  type: dict
  returned: success
network:
  description: The fleet's C(bridge), C(subnet) and C(gateway).
  type: dict
  returned: success
"""

PYTHON = (3, 12)


def main() -> None:
    """Read the parameters, act, report."""
    module = AnsibleModule(
        argument_spec={
            "fleet": {
                "type": "dict",
                "required": True,
                "options": {"id": {"type": "str", "required": True}, "subnet": {"type": "str"}},
            },
            "machines": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str"},
                    "memory_mb": {"type": "int", "default": 1024},
                    "cpus": {"type": "float", "default": 1},
                    "volumes": {
                        "type": "list",
                        "elements": "dict",
                        "default": [],
                        "options": {
                            "name": {"type": "str", "required": True},
                            "path": {"type": "str", "required": True},
                            "size_mb": {"type": "int", "required": True},
                            "keep": {"type": "bool", "default": False},
                        },
                    },
                },
            },
            "state": {
                "type": "str",
                "default": "present",
                "choices": ["present", "absent", "stopped", "killed", "partitioned", "healed"],
            },
            "peers_only": {"type": "bool", "default": False},
            "delete_volumes": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "required": True},
            "image": {"type": "path"},
            "home": {"type": "path", "default": "/var/lib/arches", "fallback": (env_fallback, ["ARCHES_STATE"])},
            "cache": {"type": "path", "default": "/var/cache/arches", "fallback": (env_fallback, ["ARCHES_CACHE"])},
        },
        required_if=[("state", "present", ("machines", "image"))],
        supports_check_mode=True,
    )
    if sys.version_info < PYTHON:
        module.fail_json(
            msg=f"Local machines need Python {PYTHON[0]}.{PYTHON[1]} or newer here, and {sys.executable} is "
            f"{sys.version.split()[0]}: run Ansible from the project's own environment (.venv)."
        )
    # Only now, since these use the newer language.
    from ansible.module_utils.nspawn.fleet import Fleet
    from ansible.module_utils.nspawn.image import Image
    from ansible.module_utils.nspawn.preflight import require_root, require_tools
    from ansible.module_utils.nspawn.registry import Registry
    from ansible.module_utils.nspawn.spec import Volume, Wish
    from ansible.module_utils.nspawn.system import NspawnError

    os.umask(0o022)
    wanted = module.params
    home, state_dir = Path(wanted["home"]), Path(wanted["state_dir"]).absolute()
    machines = wanted["machines"] and [
        Wish(**{**machine, "volumes": tuple(Volume(**volume) for volume in machine["volumes"])})
        for machine in wanted["machines"]
    ]

    def find_image() -> Image:
        return Image(Path(wanted["image"]).absolute(), Path(wanted["cache"]), home)

    try:
        require_root()
        require_tools()
        fleet = Fleet(
            wanted["fleet"]["id"],
            wanted["fleet"]["subnet"],
            state_dir=state_dir,
            registry=Registry(home),
            find_image=find_image,
            check=module.check_mode,
        )
        report = fleet.apply(wanted["state"], machines, wanted["peers_only"], wanted["delete_volumes"])
    except NspawnError as error:
        module.fail_json(msg=str(error))
    for warning in report.warnings:
        module.warn(warning)
    lines = [f"{what}: {action}\n" for what, action in sorted(report.actions.items())]
    network = fleet.network
    module.exit_json(
        changed=bool(report.actions),
        actions=report.actions,
        machines=report.machines,
        kept=report.kept,
        network={"bridge": network.bridge, "subnet": str(network.subnet), "gateway": str(network.gateway)},
        diff={"before": "", "after": "".join(lines)},
    )


if __name__ == "__main__":
    main()
