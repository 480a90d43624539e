"""The committed inventories are sound; a wrong one is refused with one sentence that names file, variable and fix."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inventory_rules import Inventory, findings
from rules.environments import ENVIRONMENTS, ROOT, Environment, copy_inventories, dummy, load_plugin, validate

type Change = tuple[str, str, str]

# The two keys that stand in staging and prod.
EXAMPLE_KEY = "age1zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs0dsc5v"
OTHER_KEY = "age1yg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3quewddq"

# What is changed in which file of prod (or of the environment named first), and what the one error must say.
BAD: dict[str, tuple[Change, tuple[str, ...]]] = {
    "missing secret": (
        ("prod/group_vars/all/vault.yml", f"vault_jwt_secret: {dummy('vault_jwt_secret')}\n", ""),
        ("inventories/prod/group_vars/all/vault.yml", "`vault_jwt_secret`", "is missing", "Add it"),
    ),
    "misspelled key of a host": (
        ("prod/hosts.yml", "203.0.113.32, memory_mb", "203.0.113.32, memory_md"),
        ("inventories/prod/hosts.yml", "`memory_md` of data2", "Did you mean `memory_mb`?"),
    ),
    "misspelled group": (
        ("prod/hosts.yml", "    ops:", "    opps:"),
        ("inventories/prod/hosts.yml", "`opps`", "Did you mean `ops`?"),
    ),
    "two data hosts": (
        ("prod/hosts.yml", "        data3: {address: 203.0.113.33, memory_mb: 16384, cpus: 4}\n", ""),
        ("inventories/prod/hosts.yml", "`data` has 2 hosts (data1, data2)", "exactly 3"),
    ),
    "port used twice": (
        ("shared/services.yml", "port: 5000", "port: 9091"),
        ("inventories/shared/services.yml", "`services.api_metrics`", "`services.haproxy_leader`", "port 9091 on api1"),
    ),
}


@pytest.fixture
def inventories(tmp_path: Path) -> Path:
    """A copy of all inventories with dummy secrets, to be changed at will."""
    return copy_inventories(tmp_path)


def load(inventory: Path) -> Inventory:
    """What the rules look at, collected as in a run."""
    environment = Environment(inventory)
    groups = {name: [host.name for host in group.get_hosts()] for name, group in environment.inventory.groups.items()}
    collected: Inventory = load_plugin("action", "inventory_check").collect(
        inventory, environment.loader, environment.hostvars, groups
    )
    return collected


@pytest.fixture
def change(inventories: Path) -> Callable[[str, str, str], None]:
    """A function that replaces a text that stands exactly once in a file of the copy."""

    def replace(file: str, old: str, new: str) -> None:
        text = (inventories / file).read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
        (inventories / file).write_text(text.replace(old, new))

    return replace


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_committed_inventory_is_sound(environment: str, inventories: Path) -> None:
    assert not findings(load(inventories / environment))


def test_a_sound_inventory_passes_the_play(inventories: Path) -> None:
    run = validate(inventories / "staging")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "changed=0" in run.stdout


def test_ansible_inventory_reads_it() -> None:
    listed = subprocess.run(
        [Path(sys.executable).parent / "ansible-inventory", "-i", "inventories/prod", "--list"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    groups = json.loads(listed.stdout)
    assert {name: len(groups[name]["hosts"]) for name in ("edge", "api", "data", "ops")} == {
        "edge": 2, "api": 3, "data": 3, "ops": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_inventory_is_refused(name: str, change: Callable[[str, str, str], None], inventories: Path) -> None:
    edit, says = BAD[name]
    change(*edit)
    run = validate(inventories / "prod")
    # Ansible prints a failure twice: at once, and with the task's result.
    errors = list({line.strip() for line in run.stdout.splitlines() if line.strip().startswith("- ")})
    assert run.returncode != 0
    assert len(errors) == 1, errors
    assert all(word in errors[0] for word in says), errors[0]


def test_all_errors_come_at_once_and_no_secret_is_shown(
    change: Callable[[str, str, str], None], inventories: Path
) -> None:
    change("prod/hosts.yml", "    ops:", "    opps:")
    change("prod/group_vars/all/vault.yml", dummy("vault_redis_app_password"), "half-CHANGE-ME-half")
    run = validate(inventories / "prod", "--limit", "api2")
    assert "The inventory has 2 errors; no host was touched." in run.stdout
    assert "half-" not in run.stdout + run.stderr


def test_an_environment_without_a_vault_is_told_how_to_make_one(inventories: Path) -> None:
    (inventories / "staging/group_vars/all/vault.yml").unlink()
    (error,) = findings(load(inventories / "staging"))
    assert "inventories/staging/group_vars/all/vault.yml" in error
    assert "Copy vault.yml.example to vault.yml" in error


# The same as BAD, for everything that is not worth a whole run of Ansible: these go through the same collection.
ALSO_BAD: dict[str, tuple[Change, tuple[str, ...]]] = {
    "unknown variable": (
        ("prod/group_vars/all/main.yml", "domain:", "colour: red\ndomain:"),
        ("inventories/prod/group_vars/all/main.yml", "`colour` is not a known variable", "inventories/schema.yml"),
    ),
    "misspelled input of a role": (
        ("shared/wiring/redis.yml", "redis_port:", "redis_prot: 1\nredis_port:"),
        ("inventories/shared/wiring/redis.yml", "`redis_prot`", "Did you mean `redis_port`?", "The role redis"),
    ),
    "misspelled secret": (
        ("prod/group_vars/all/vault.yml", "vault_jwt_secret:", "vault_jwt_sekret: x\nvault_jwt_secret:"),
        ("inventories/prod/group_vars/all/vault.yml", "`vault_jwt_sekret`", "Did you mean `vault_jwt_secret`?"),
    ),
    "misspelled key of a group": (
        ("prod/hosts.yml", "    ops:\n      hosts:", "    ops:\n      vras: {}\n      hosts:"),
        ("inventories/prod/hosts.yml", "`vras` below `ops`", "Did you mean `vars`?"),
    ),
    "misspelled size": (
        ("prod/group_vars/all/sizes.yml", "pool_size", "pool_siez"),
        ("inventories/prod/group_vars/all/sizes.yml", "`pool_siez` in `sizes.pgbouncer`", "Did you mean `pool_size`?"),
    ),
    "placeholder secret": (
        ("prod/group_vars/all/vault.yml", dummy("vault_redis_app_password"), "CHANGE-ME"),
        ("inventories/prod/group_vars/all/vault.yml", "`vault_redis_app_password`", "Write its value"),
    ),
    "empty secret": (
        ("prod/group_vars/all/vault.yml", dummy("vault_jwt_secret"), "''"),
        ("`vault_jwt_secret` is empty",),
    ),
    "secret that cannot be read": (
        ("prod/group_vars/all/vault.yml", dummy("vault_jwt_secret"), "'{{ nowhere }}'"),
        ("`vault_jwt_secret` cannot be read",),
    ),
    "host in no group": (
        ("prod/hosts.yml", "all:\n", "all:\n  hosts: {lost1: {address: 203.0.113.99, memory_mb: 512, cpus: 1}}\n"),
        ("inventories/prod/hosts.yml", "`lost1` belongs to no group"),
    ),
    "one edge in prod": (
        ("prod/hosts.yml", "        edge2: {address: 203.0.113.12, memory_mb: 2048, cpus: 2}\n", ""),
        ("`edge` has 1 hosts (edge1)", "at least 2"),
    ),
    "single in staging": (
        ("staging/group_vars/all/main.yml", "topology: ha", "topology: single"),
        ("inventories/staging/group_vars/all/main.yml", "`topology` is single", "refused in staging"),
    ),
    "nobody hears of pages": (
        ("prod/group_vars/all/main.yml", "page: [{type: pagerduty}]", "page: []"),
        ("inventories/prod/group_vars/all/main.yml", "`alert_receivers.page` is empty", "Name a receiver"),
    ),
    "misspelled receiver": (
        ("prod/group_vars/all/main.yml", "{type: pagerduty}", "{type: pagerdty}"),
        ("`alert_receivers.page` has a receiver of type `pagerdty`", "Did you mean `pagerduty`?"),
    ),
    "receiver without its address": (
        (
            "local/group_vars/all/main.yml",
            'ticket: [{type: webhook, url: "http://10.88.10.1:9199/ticket"}]',
            "ticket: [{type: webhook}]",
        ),
        (
            "inventories/local/group_vars/all/main.yml",
            "`alert_receivers.ticket`: a receiver of type webhook lacks `url`",
        ),
    ),
    "one key for all secrets": (
        ("prod/group_vars/all/main.yml", f"  - {OTHER_KEY}\n", ""),
        ("inventories/prod/group_vars/all/main.yml", "`escrow_recipients` has fewer than two", "Name two people's"),
    ),
    "the same key twice": (
        ("prod/group_vars/all/main.yml", OTHER_KEY, EXAMPLE_KEY),
        ("`escrow_recipients` has fewer than two",),
    ),
    "misspelled key": (
        ("prod/group_vars/all/main.yml", EXAMPLE_KEY, EXAMPLE_KEY.replace("dsc5v", "dsc5q")),
        ("`escrow_recipients` has `age1zyg3", "age-keygen"),
    ),
    "no keys in staging": (
        (
            "staging/group_vars/all/main.yml",
            f"escrow_recipients:\n  - {EXAMPLE_KEY}\n  - {OTHER_KEY}\n",
            "escrow_recipients: []\n",
        ),
        ("inventories/staging/group_vars/all/main.yml", "`escrow_recipients` has fewer than two"),
    ),
    "unknown topology": (
        ("local/group_vars/all/main.yml", "topology: ha", "topology: pair"),
        ("inventories/local/group_vars/all/main.yml", "`topology` is `pair`", "one of ha, single"),
    ),
    "host without an address": (
        ("prod/hosts.yml", "{address: 203.0.113.32, ", "{"),
        ("inventories/prod/hosts.yml", "`address` of data2 is missing", "IPv4 address"),
    ),
    "text for a number": (
        ("prod/hosts.yml", "203.0.113.32, memory_mb: 16384", "203.0.113.32, memory_mb: 16 GB"),
        ("`memory_mb` of data2 is `16 GB`", "a whole number"),
    ),
    "no address at all": (
        ("prod/hosts.yml", "203.0.113.32,", "data2.example,"),
        ("`address` of data2 is `data2.example`",),
    ),
    "shared address without a prefix": (
        ("prod/group_vars/all/main.yml", "203.0.113.10/24", "203.0.113.10"),
        ("inventories/prod/group_vars/all/main.yml", "`edge_virtual` is `203.0.113.10`", "with its prefix"),
    ),
    "shared address that a host has": (
        ("prod/group_vars/all/main.yml", "203.0.113.10/24", "203.0.113.11/24"),
        ("`edge_virtual` is edge1's own address 203.0.113.11", "Choose one that no host has"),
    ),
    "shared address for one edge": (
        (
            "staging/group_vars/all/main.yml",
            "domain:",
            "edge_virtual: {address: 203.0.113.110/24, interface: eth0}\ndomain:",
        ),
        ("`edge_virtual` is for two edges or more",),
    ),
    "address given twice": (
        ("prod/hosts.yml", "203.0.113.32,", "203.0.113.31,"),
        ("`address` 203.0.113.31 is given to data1 and to data2",),
    ),
    "address outside the fleet": (
        ("local/hosts.yml", "10.88.10.32,", "10.88.11.32,"),
        ("inventories/local/hosts.yml", "`address` 10.88.11.32 of data2 is outside `fleet.subnet` 10.88.10.0/24"),
    ),
    "misspelled key of a volume": (
        ("local/hosts.yml", "size_mb", "size_md"),
        ("inventories/local/hosts.yml", "`size_md` in `volumes[]` of ops1", "Did you mean `size_mb`?"),
    ),
    "volume without a size": (
        ("local/hosts.yml", "size_mb: 4096, ", ""),
        ("inventories/local/hosts.yml", "`volumes[].size_mb` of ops1 is missing", "a whole number of at least 16"),
    ),
    "volume in prod": (
        ("prod/hosts.yml", "203.0.113.32, memory_mb", "203.0.113.32, volumes: [], memory_mb"),
        ("inventories/prod/hosts.yml", "`volumes` of data2", "machine_provider: none", "mount the disk"),
    ),
    "fleet in prod": (
        ("prod/group_vars/all/main.yml", "domain:", "fleet: {id: prod, subnet: 203.0.113.0/24}\ndomain:"),
        ("inventories/prod/group_vars/all/main.yml", "`fleet`", "Remove it"),
    ),
    "unknown group in the map": (
        ("shared/services.yml", "etcd_peer: {hosts: data", "etcd_peer: {hosts: date"),
        ("inventories/shared/services.yml", "`services.etcd_peer.hosts` names `date`", "Did you mean `data`?"),
    ),
    "unknown party in the map": (
        ("shared/services.yml", "port: 80, from: [world]", "port: 80, from: [wrold]"),
        ("`services.edge_http.from` names `wrold`", "Did you mean `world`?"),
    ),
    "unknown tls in the map": (
        ("shared/services.yml", "port: 2380, from: [data], tls: internal", "port: 2380, from: [data], tls: maybe"),
        ("`services.etcd_peer.tls` is `maybe`", "one of none, internal, public, ssh"),
    ),
    "port out of range": (
        ("shared/services.yml", "port: 26379", "port: 263790"),
        ("`services.sentinel.port` is 263790", "up to 65535"),
    ),
    "too many connections": (
        ("prod/group_vars/all/sizes.yml", "max_db_connections: 60", "max_db_connections: 100"),
        ("sizes.yml: `sizes.pgbouncer.max_db_connections` 100 x 3 API hosts", "Write at most 93", "to 320"),
    ),
    "pool that cannot fill": (
        ("prod/group_vars/all/sizes.yml", "pool_size: 50", "pool_size: 61"),
        ("`sizes.pgbouncer.pool_size` 61", "Write at most 60"),
    ),
    "too little memory": (
        ("prod/hosts.yml", "203.0.113.32, memory_mb: 16384", "203.0.113.32, memory_mb: 8192"),
        ("inventories/prod/hosts.yml", "`memory_mb` of data2 is 8192", "postgres 8192", "Write at least 10400"),
    ),
    "Patroni's ttl too short": (
        ("prod/group_vars/all/timers.yml", "retry_timeout: 3", "retry_timeout: 10"),
        ("timers.yml: `timers.patroni.ttl` is 20", "Write `ttl: 21`"),
    ),
    "Patroni's ttl below its floor": (
        ("prod/group_vars/all/timers.yml", "ttl: 20", "ttl: 15"),
        ("timers.yml: `timers.patroni.ttl` is `15`", "at least 20"),
    ),
    "etcd's election too short": (
        ("prod/group_vars/all/timers.yml", "election_ms: 1000", "election_ms: 400"),
        ("timers.yml: `timers.etcd.election_ms` is 400", "at least 500"),
    ),
    "standbys given up too early": (
        ("prod/group_vars/all/timers.yml", "wal_sender_timeout_ms: 4500", "wal_sender_timeout_ms: 3000"),
        ("timers.yml: `timers.postgres.wal_sender_timeout_ms` is 3000", "Write more", "4500"),
    ),
}


@pytest.mark.parametrize("name", ALSO_BAD)
def test_wrong_value_is_found(name: str, change: Callable[[str, str, str], None], inventories: Path) -> None:
    edit, says = ALSO_BAD[name]
    change(*edit)
    environment = edit[0].partition("/")[0]
    errors = findings(load(inventories / ("prod" if environment == "shared" else environment)))
    assert len(errors) == 1, errors
    assert all(word in errors[0] for word in says), errors[0]


def test_a_file_for_nobody_is_found(inventories: Path) -> None:
    (inventories / "prod/group_vars/dta.yml").write_text("domain: x\n")
    (error,) = findings(load(inventories / "prod"))
    assert "inventories/prod/group_vars/dta.yml: `dta` is neither a group nor a host" in error
    assert "Did you mean `data`?" in error
