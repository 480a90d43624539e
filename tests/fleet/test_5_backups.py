"""The running fleet makes backups by itself, and proves that they can be restored."""

import json
from typing import Any

from lib.fleet import Fleet
from lib.waiting import wait_for

# The timer comes every five minutes; the rest is for a busy computer.
FIRST_BACKUP_S = 420
RPO_S = 180


def backups(fleet: Fleet) -> list[dict[str, Any]]:
    """Backups of Postgres in the store, as any data host sees them."""
    said = fleet.ssh(fleet.groups["data"][0], "runuser -u postgres -- pgbackrest --stanza=arches --output=json info")
    found: list[dict[str, Any]] = json.loads(said.stdout)[0]["backup"]
    return found


def report(fleet: Fleet) -> dict[str, Any]:
    """What the last attempt to prove a restore says of itself."""
    said: dict[str, Any] = json.loads(fleet.ssh(fleet.groups["ops"][0], "cat /var/lib/arches-prover/last.json").stdout)
    return said


def test_a_new_fleet_has_a_backup_soon_and_its_restore_is_proven(healthy: Fleet) -> None:
    wait_for("a full backup", lambda: any(b["type"] == "full" for b in backups(healthy)), FIRST_BACKUP_S, 5)
    healthy.ssh(healthy.groups["ops"][0], "systemctl start arches-prover")
    said = report(healthy)
    assert said["proven"], said["why"]
    assert all(check["passed"] for check in said["checks"]) and len(said["checks"]) == 6
    assert said["rpo_s"] <= RPO_S
    assert healthy.status()[1]["restore"]["proven"]


def test_secrets_are_sealed_and_the_bundle_opens(fleet: Fleet) -> None:
    done = fleet.playbook("ansible/escrow.yml")
    assert "is complete" in done.output
    metric = "cat /var/lib/prometheus/node-exporter/escrow.prom"
    assert "arches_escrow_last_success_timestamp_seconds" in fleet.ssh(fleet.groups["ops"][0], metric).stdout
