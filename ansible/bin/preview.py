#!/usr/bin/env python3
"""What would site.yml change? ansible/bin/preview.py inventories/staging

Runs it in check mode and prints a page in Markdown: how many hosts, and each difference. Exit status: 0, or 1 when the
check did not run to its end. Changes nothing.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from checklist import REPOSITORY, Failed, ours, output

LONGEST = 60_000  # characters: what a page of GitHub's takes


class Difference(NamedTuple):
    """What a check found: tasks that would change something, with what Ansible shows of each; how many per host."""

    tasks: list[tuple[str, str]]
    changed: dict[str, int]


def read_check(text: str) -> Difference:
    """The differences in the output of `ansible-playbook --check --diff`."""
    tasks = []
    for part in re.split(r"^(?=TASK \[|PLAY \[|PLAY RECAP)", text, flags=re.MULTILINE):
        name = re.match(r"TASK \[(.*?)\] \*", part)
        if name and re.search(r"^changed: ", part, re.MULTILINE):
            lines = [line for line in part.splitlines()[1:] if line and not line.startswith(("ok:", "skipping:"))]
            tasks.append((name[1], "\n".join(lines)))
    recap = text.partition("PLAY RECAP")[2]
    changed = {
        host: int(count) for host, count in re.findall(r"^(\S+)\s*: ok=\d+\s+changed=(\d+)", recap, re.MULTILINE)
    }
    return Difference(tasks, {host: count for host, count in changed.items() if count})


def compare(folder: Path, environment: str) -> Difference:
    """What site.yml of a checkout would change in an environment. Raises Failed with Ansible's words."""
    done = subprocess.run(
        [ours("ansible-playbook"), "-i", f"inventories/{environment}", "site.yml", "--check", "--diff"],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"the check did not run to its end:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return read_check(done.stdout)


def page(title: str, found: Difference) -> str:
    """The page: short when nothing would change."""
    if not found.tasks:
        return f"# {title}\n\nNothing would change.\n"
    hosts = ", ".join(f"{host} ({count})" for host, count in found.changed.items())
    parts = [f"# {title}\n\n{len(found.tasks)} tasks would change something on {hosts}.\n"]
    parts += [
        f"<details><summary>{name}</summary>\n\n```diff\n{body}\n```\n\n</details>\n" for name, body in found.tasks
    ]
    text = "\n".join(parts)
    return text if len(text) < LONGEST else text[:LONGEST] + "\n```\n\nCut off here: `make preview` shows all of it.\n"


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inventory", type=Path, help="directory such as inventories/staging")
    inventory: Path = parser.parse_args().inventory
    if not (inventory / "hosts.yml").exists():
        print(f"preview: {inventory} is no environment: name a directory such as inventories/local", file=sys.stderr)
        return 1
    try:
        found = compare(REPOSITORY, inventory.name)
        print(page(f"{inventory.name} beside {output('git', 'rev-parse', '--short', 'HEAD')}", found))
    except Failed as reason:
        print(f"preview: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
