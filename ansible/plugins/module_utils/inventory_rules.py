"""The rules an inventory must satisfy, as pure functions: no Ansible, no files, no network.

Every finding is one sentence that says which file, which variable, what is wrong and what to write.
The action ``inventory_check`` fills :class:`Inventory` and prints what :func:`findings` returns.
"""

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from escrow import wrong_recipients

type Spec = Mapping[str, Any]
type SecretState = Literal["good", "empty", "placeholder", "unreadable"]

GROUPS = ("edge", "api", "data", "ops")
GROUP_KEYS = ("hosts", "children", "vars")
PLACEHOLDER = "CHANGE-ME"

# What runs on a host of a group, as named in `sizes`; the API runs once per core.
COMPONENTS = {
    "all": ["system", "exporters", "collector"],
    "edge": ["nginx"],
    "api": ["api", "embedder", "pgbouncer", "haproxy", "pool_guard"],
    "data": ["etcd", "postgres", "lease_watcher", "redis", "backup"],
    "ops": ["apt_repository", "s3", "prover", "prometheus", "alertmanager", "loki", "jaeger", "grafana"],
}

# The two outside parties that the service map may name in `from`.
OUTSIDE = ("controller", "world")


@dataclass(frozen=True)
class Definition:
    """One variable as it is written in one file of the inventory; ``host`` is empty for a group's variable."""

    file: str
    name: str
    value: Any
    host: str = ""


@dataclass(frozen=True)
class Unresolved:
    """Stands for a value whose template could not be rendered."""

    reason: str


@dataclass(frozen=True)
class Inventory:
    """All that the rules look at.

    :param root: the environment's directory as a person would write it, e.g. ``inventories/prod``.
    :param definitions: every variable of every file, unrendered.
    :param groups: hosts of each group, ``all`` and ``ungrouped`` included.
    :param hosts: for each host its variables that the schema names, rendered.
    :param schema: content of ``inventories/schema.yml``.
    :param role_options: names of the inputs of each role.
    :param secrets: state of every secret that is defined; never its value.
    :param secret_examples: names in ``vault.yml.example``.
    :param tree_keys: (file, group, key) of every key of the groups in ``hosts.yml``.
    :param strays: (file, group or host) of variable files that belong to nobody.
    """

    root: str
    definitions: Sequence[Definition]
    groups: Mapping[str, Sequence[str]]
    hosts: Mapping[str, Mapping[str, Any]]
    schema: Mapping[str, Any]
    role_options: Mapping[str, frozenset[str]] = field(default_factory=dict)
    secrets: Mapping[str, SecretState] = field(default_factory=dict)
    secret_examples: Sequence[str] = ()
    tree_keys: Sequence[tuple[str, str, str]] = ()
    strays: Sequence[tuple[str, str]] = ()

    def file_of(self, name: str, host: str = "") -> str:
        """File in which a variable is written (for this host, if it has its own), or should be."""
        found = [d for d in self.definitions if d.name == name and d.host in ("", host)]
        if found:
            return max(found, key=lambda definition: definition.host).file
        place = {**self.schema["environment"], **self.schema["host"]}.get(name, {}).get(
            "file", "group_vars/all/main.yml"
        )
        return f"{self.root}/{place}".replace(f"{self.root}/../", f"{self.root.rpartition('/')[0]}/")

    def first(self, name: str) -> Any:
        """A variable that is the same for the whole environment, as its first host sees it."""
        return next((host[name] for host in self.hosts.values() if name in host), None)

    def members(self, group: str) -> list[str]:
        """Hosts of a group."""
        return list(self.groups.get(group, ()))

    def secret_references(self) -> dict[str, str]:
        """Names of secrets that some variable uses, each with the file that does."""
        uses: dict[str, str] = {}
        for definition in self.definitions:
            for text in strings(definition.value):
                for name in re.findall(r"\bvault_[a-z0-9_]+", text):
                    uses.setdefault(name, definition.file)
        return uses


def findings(inventory: Inventory) -> list[str]:
    """Everything that is wrong with the inventory, each once, in the order of :data:`RULES`."""
    found = (finding for rule in RULES for finding in rule(inventory))
    return list(dict.fromkeys(found))


def secret_state(value: object) -> SecretState:
    """Whether a secret's rendered value can be one; the value itself goes no further."""
    if isinstance(value, Unresolved):
        return "unreadable"
    text = "" if value is None else str(value).strip()
    if not text:
        return "empty"
    return "placeholder" if PLACEHOLDER in text else "good"


def strings(value: object) -> Iterator[str]:
    """All strings in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings(item)


def suggestion(name: str, known: Sequence[str]) -> str:
    """The known name that somebody probably meant, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return close[0] if close else ""


def hint(meant: str) -> str:
    """Question at the end of a finding about an unknown name."""
    return f" Did you mean `{meant}`?" if meant else ""


def at(value: object, path: str) -> Any:
    """Value below a dotted path, or None where the path leads nowhere."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: object, path: str) -> int | None:
    """Like :func:`at`, but only for a number: the types are reported by a rule of their own."""
    found = at(value, path)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


# Names


def known_names(inventory: Inventory) -> list[str]:
    """Every variable name that the inventory may define."""
    schema = inventory.schema
    names = [*schema["host"], *schema["environment"], *schema["connection"], *schema["playbooks"]]
    return [
        *names,
        *inventory.secret_examples,
        *inventory.secret_references(),
        *(name for names in inventory.role_options.values() for name in names),
    ]


def misspelled(inventory: Inventory) -> dict[str, str]:
    """Each unknown variable name with the known one that was probably meant."""
    known = known_names(inventory)
    # `_<role>_x` is a working value of a role's wiring.
    private = tuple(f"_{role}_" for role in inventory.role_options)
    names = [d.name for d in inventory.definitions if d.name not in known and not d.name.startswith(private)]
    return {name: suggestion(name, known) for name in names}


def variables_are_known(inventory: Inventory) -> Iterator[str]:
    """A name that nothing reads is a typing mistake."""
    wrong = misspelled(inventory)
    for definition in inventory.definitions:
        if definition.name not in wrong:
            continue
        where = f" of {definition.host}" if definition.host else ""
        role = next((r for r in inventory.role_options if definition.name.startswith(f"{r}_")), None)
        fix = (
            f"The role {role} has no such input (roles/{role}/meta/argument_specs.yml)."
            if role
            else "Correct the name, remove it, or add it to inventories/schema.yml."
        )
        meant = hint(wrong[definition.name])
        yield f"{definition.file}: `{definition.name}`{where} is not a known variable.{meant} {fix}"


def files_have_owners(inventory: Inventory) -> Iterator[str]:
    """A variables file named after a group or host that does not exist is never read."""
    for file, owner in inventory.strays:
        meant = hint(suggestion(owner, [*inventory.groups, *inventory.hosts]))
        yield f"{file}: `{owner}` is neither a group nor a host: nothing reads this file.{meant} Rename or remove it."


def groups_are_known(inventory: Inventory) -> Iterator[str]:
    """A host does what its groups say, so a group that nothing knows leaves its hosts bare."""
    file = f"{inventory.root}/hosts.yml"
    for group in unknown_groups(inventory):
        meant = hint(suggestion(group, GROUPS))
        yield f"{file}: `{group}` is not a known group.{meant} The groups are {', '.join(GROUPS)}."
    for tree, group, key in inventory.tree_keys:
        if key not in GROUP_KEYS:
            meant = hint(suggestion(key, GROUP_KEYS))
            yield f"{tree}: `{key}` below `{group}` is not a known key.{meant} Known: {', '.join(GROUP_KEYS)}."
    for host in inventory.members("ungrouped"):
        yield f"{file}: `{host}` belongs to no group. Put it below one of {', '.join(GROUPS)}."


def unknown_groups(inventory: Inventory) -> list[str]:
    """Groups besides the four and Ansible's own two."""
    return [group for group in inventory.groups if group not in (*GROUPS, "all", "ungrouped")]


def groups_have_their_size(inventory: Inventory) -> Iterator[str]:
    """The topology decides how many hosts a group has."""
    file, environment, topology = (
        f"{inventory.root}/hosts.yml",
        inventory.first("environment_name"),
        inventory.first("topology"),
    )
    meant = {suggestion(group, GROUPS) for group in unknown_groups(inventory)}
    count = {group: len(inventory.members(group)) for group in GROUPS}
    if topology == "single" and environment in ("staging", "prod"):
        yield (
            f"{inventory.file_of('topology')}: `topology` is single, which keeps one copy of the data and is refused "
            f"in {environment}. Write `topology: ha` and name three data hosts."
        )
        return
    wanted = (
        {"data": 1}
        if topology == "single"
        else {"edge": 2 if environment == "prod" else 1, "api": 1, "data": 3, "ops": 1}
    )
    for group, minimum in wanted.items():
        exact = group == "data"
        if group in meant or count[group] == minimum or (count[group] > minimum and not exact):
            continue
        names = f" ({', '.join(inventory.members(group))})" if count[group] else ""
        yield (
            f"{file}: the group `{group}` has {count[group]} hosts{names}, but `topology: {topology}` in {environment} "
            f"needs {'exactly' if exact else 'at least'} {minimum}. Name {minimum} below `{group}: hosts:`."
        )


# Types


def values_have_their_type(inventory: Inventory) -> Iterator[str]:
    """Every variable of the schema is present where it is required, and is what the schema says."""
    spelled_wrong = set(misspelled(inventory).values())
    for kind in ("environment", "host"):
        for host, variables in inventory.hosts.items():
            for name, spec in inventory.schema[kind].items():
                place = f"`{name}` of {host}" if kind == "host" else f"`{name}`"
                file = inventory.file_of(name, host)
                if name in variables:
                    yield from wrong_value(file, place, variables[name], spec)
                elif spec.get("required") and name not in spelled_wrong:
                    yield f"{file}: {place} is missing. Write `{name}:` followed by {expected(spec)}."


def expected(spec: Spec) -> str:
    """What to write for a value of this kind."""
    if "choices" in spec:
        return f"one of {', '.join(map(str, spec['choices']))}"
    texts = {
        "str": "a text", "int": "a whole number", "bool": "true or false", "list": "a list", "dict": "a dictionary",
        "ipv4": "an IPv4 address such as 203.0.113.7", "network": "an address range such as 203.0.113.0/24",
        "any": "a value",
    }  # fmt: skip
    return texts[spec["type"]] + (f" of at least {spec['min']}" if "min" in spec else "")


def wrong_value(file: str, place: str, value: Any, spec: Spec) -> Iterator[str]:
    """What is wrong with one value, nested ones included."""
    if isinstance(value, Unresolved):
        yield f"{file}: {place} cannot be resolved: {value.reason}"
    elif not is_of_type(value, spec["type"]) or value not in spec.get("choices", [value]) or too_small(value, spec):
        yield f"{file}: {place} is `{value}`. Write {expected(spec)}."
    elif "elements" in spec:
        of_item = {"type": spec["elements"]} | {key: spec[key] for key in ("options",) if key in spec}
        for item in value:
            yield from wrong_value(file, inside(place, "[]"), item, of_item)
    elif "options" in spec:
        yield from wrong_options(file, place, value, spec["options"])
    elif "entries" in spec:
        for key, entry in value.items():
            inner = inside(place, f".{key}")
            if isinstance(entry, Mapping):
                yield from wrong_options(file, inner, entry, spec["entries"])
            else:
                yield f"{file}: {inner} is `{entry}`. Write a dictionary with {', '.join(spec['entries'])}."


def inside(place: str, path: str) -> str:
    """Name what lies below a place: "`fleet`" and ".id" give "`fleet.id`", "`x` of data2" keeps its host."""
    name, _, rest = place.rpartition("`")
    return f"{name}{path}`{rest}"


def wrong_options(file: str, place: str, value: Mapping[str, Any], options: Mapping[str, Spec]) -> Iterator[str]:
    """Unknown, missing and wrong keys of one dictionary."""
    unknown = {key: suggestion(str(key), list(options)) for key in value if key not in options}
    for key, meant in unknown.items():
        yield f"{file}: `{key}` in {place} is not a known key.{hint(meant)} Known: {', '.join(options)}."
    for key, spec in options.items():
        inner = inside(place, f".{key}")
        if key in value:
            yield from wrong_value(file, inner, value[key], spec)
        elif spec.get("required") and key not in unknown.values():
            yield f"{file}: {inner} is missing. Write `{key}:` followed by {expected(spec)}."


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a value is of a schema type."""
    match kind:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "ipv4" | "network":
            return network_of(value) is not None and (kind == "network" or "/" not in value)
        case "any":
            return True
    return isinstance(value, {"str": str, "bool": bool, "list": list, "dict": Mapping}[kind])


def network_of(value: object) -> ipaddress.IPv4Network | None:
    """An address or address range, or None if it is not one."""
    try:
        return ipaddress.IPv4Network(value) if isinstance(value, str) else None
    except ValueError:
        return None


def too_small(value: Any, spec: Spec) -> bool:
    """Whether a number is below the schema's minimum."""
    return "min" in spec and value < spec["min"]


# Addresses and ports


def addresses_are_unique(inventory: Inventory) -> Iterator[str]:
    """Two hosts with one address are one host."""
    for one, other in combinations(inventory.hosts, 2):
        address = inventory.hosts[one].get("address")
        if address is not None and address == inventory.hosts[other].get("address"):
            file = inventory.file_of("address", other)
            yield f"{file}: `address` {address} is given to {one} and to {other}. Give each host its own."


def shared_address_is_shared(inventory: Inventory) -> Iterator[str]:
    """One address for two edges or more, and no host's own."""
    shared = inventory.first("edge_virtual")
    if not isinstance(shared, Mapping) or "address" not in shared:
        return
    file, text = inventory.file_of("edge_virtual"), str(shared["address"])
    try:
        interface = ipaddress.IPv4Interface(text)
    except ValueError:
        interface = None
    if interface is None or "/" not in text:
        yield f"{file}: `address` in `edge_virtual` is `{text}`. Write one with its prefix, such as 203.0.113.10/24."
        return
    # Who has too few edges altogether is told so already.
    if len(inventory.members("edge")) < 2 and not any(groups_have_their_size(inventory)):
        yield f"{file}: `edge_virtual` is for two edges or more; there is one. Add a second below `edge`, or remove it."
    for host, variables in inventory.hosts.items():
        if variables.get("address") == str(interface.ip):
            yield f"{file}: `edge_virtual` is {host}'s own address {interface.ip}. Choose one that no host has."


def local_machines_have_a_fleet(inventory: Inventory) -> Iterator[str]:
    """Local machines live in their fleet's subnet; elsewhere there is no fleet to speak of."""
    provider, fleet, file = inventory.first("machine_provider"), inventory.first("fleet"), inventory.file_of("fleet")
    if provider == "none":
        environment = inventory.first("environment_name")
        for host in (host for host, variables in inventory.hosts.items() if "volumes" in variables):
            yield (
                f"{inventory.file_of('volumes', host)}: `volumes` of {host} describes a disk of a local machine; "
                f"{environment} has none (machine_provider: none). Remove it, and mount the disk on the host itself."
            )
    if provider == "none" and fleet is not None:
        yield f"{file}: `fleet` describes local machines; {environment} has none (machine_provider: none). Remove it."
    if provider != "nspawn":
        return
    if fleet is None:
        yield f"{file}: `fleet` is missing. Write `fleet: {{id: <short name>, subnet: <address range>}}`."
        return
    subnet = network_of(at(fleet, "subnet"))
    for host, variables in inventory.hosts.items():
        address = network_of(variables.get("address"))
        if subnet and address and not address.subnet_of(subnet):
            yield (
                f"{inventory.file_of('address', host)}: `address` {variables['address']} of {host} is outside "
                f"`fleet.subnet` {subnet} ({file}). Write an address of that range."
            )


def service_map_is_sound(inventory: Inventory) -> Iterator[str]:
    """Groups exist and counts make sense; keys and types are the schema's business."""
    file = inventory.file_of("services")
    for name, entry in service_entries(inventory).items():
        place = f"{file}: `services.{name}"
        for key, values, known in (
            ("hosts", [entry.get("hosts")], [*GROUPS, "all"]),
            ("from", entry.get("from") or [], [*GROUPS, *OUTSIDE]),
        ):
            for value in values:
                if value not in known:
                    meant = hint(suggestion(str(value), known))
                    yield f"{place}.{key}` names `{value}`, not a group.{meant} Known: {', '.join(known)}."
        count = entry.get("count", 1)
        if count != "per_core" and not is_of_type(count, "int"):
            yield f"{place}.count` is `{count}`. Write a whole number or per_core."
        if (number(entry, "port") or 0) > 65535:
            yield f"{place}.port` is {entry['port']}. Write a number up to 65535."


def service_entries(inventory: Inventory) -> dict[str, Mapping[str, Any]]:
    """Entries of the service map that are dictionaries at all."""
    services = inventory.first("services")
    if not isinstance(services, Mapping):
        return {}
    return {name: entry for name, entry in services.items() if isinstance(entry, Mapping)}


def ports_of(entry: Mapping[str, Any], cpus: int) -> range:
    """Ports that one entry of the service map takes on a host with this many cores; empty if it is malformed."""
    port, count = number(entry, "port"), entry.get("count", 1)
    count = cpus if count == "per_core" else count
    return range(port, port + count) if port is not None and isinstance(count, int) else range(0)


def ports_are_used_once(inventory: Inventory) -> Iterator[str]:
    """Two services of one host cannot listen on one port; ranges count too."""
    entries = service_entries(inventory)
    file = inventory.file_of("services")
    for one, other in combinations(entries, 2):
        for host, variables in inventory.hosts.items():
            taken = [
                set(ports_of(entry, number(variables, "cpus") or 1))
                for entry in (entries[one], entries[other])
                if host in inventory.members(str(entry.get("hosts")))
            ]
            shared = min(taken[0] & taken[1], default=None) if len(taken) == 2 else None
            if shared is not None:
                yield (
                    f"{file}: `services.{one}` and `services.{other}` both use port {shared} on {host}. "
                    "Write another `port` for one of them."
                )
                break


# Secrets


def secrets_are_set(inventory: Inventory) -> Iterator[str]:
    """Every secret is there and is not the example's placeholder; values are never shown."""
    file = f"{inventory.root}/group_vars/all/vault.yml"
    used = inventory.secret_references()
    wanted = [name for name in dict.fromkeys([*inventory.secret_examples, *used]) if name not in inventory.secrets]
    if len(wanted) > 1 and not inventory.secrets:
        yield (
            f"{file}: all {len(wanted)} secrets are missing ({', '.join(f'`{name}`' for name in wanted)}). "
            "Copy vault.yml.example to vault.yml, fill it in, and encrypt it: ansible-vault encrypt vault.yml."
        )
        return
    for name in wanted:
        use = f" (used in {used[name]})" if name in used else ""
        yield f"{file}: the secret `{name}` is missing{use}. Add it to the vault."
    texts = {
        "empty": "is empty. Write its value.",
        "placeholder": f"is still the example's {PLACEHOLDER}. Write its value.",
        "unreadable": "cannot be read: its template fails. Write a plain value, or make what it looks up available.",
    }
    for name, state in inventory.secrets.items():
        if state != "good":
            yield f"{file}: the secret `{name}` {texts[state]}"


# Arithmetic


def connections_suffice(inventory: Inventory) -> Iterator[str]:
    """Postgres must have a connection for every one that the poolers may open, and some for people and monitoring."""
    sizes, hosts = inventory.first("sizes"), len(inventory.members("api"))
    each, pool, reserve, limit = (
        number(sizes, path)
        for path in (
            "pgbouncer.max_db_connections",
            "pgbouncer.pool_size",
            "postgres.reserved_connections",
            "postgres.max_connections",
        )
    )
    if each is None or pool is None or reserve is None or limit is None:
        return
    place, needed = f"{inventory.file_of('sizes')}: `sizes.pgbouncer", each * hosts + reserve
    if needed > limit:
        yield (
            f"{place}.max_db_connections` {each} x {hosts} API hosts + `sizes.postgres.reserved_connections` {reserve} "
            f"= {needed} is more than `sizes.postgres.max_connections` {limit}. "
            f"Write at most {max(limit - reserve, 0) // max(hosts, 1)}, or raise max_connections to {needed}."
        )
    if pool > each:
        yield f"{place}.pool_size` {pool} is more than max_db_connections {each}. Write at most {each}."


def memory_suffices(inventory: Inventory) -> Iterator[str]:
    """The components of a host fit into its memory."""
    for host, variables in inventory.hosts.items():
        memory, cpus = number(variables, "memory_mb"), number(variables, "cpus")
        if memory is None or cpus is None:
            continue
        groups = [group for group in COMPONENTS if group == "all" or host in inventory.members(group)]
        sizes = [
            (name, cpus if name == "api" else 1, number(variables, f"sizes.{name}.memory_mb") or 0)
            for group in groups
            for name in COMPONENTS[group]
        ]
        total = sum(times * size for _, times, size in sizes)
        if total > memory:
            terms = " + ".join(f"{name} {size}" + (f" x {times}" if times > 1 else "") for name, times, size in sizes)
            yield (
                f"{inventory.file_of('memory_mb', host)}: `memory_mb` of {host} is {memory}, but its components need "
                f"{total} ({terms}; {inventory.file_of('sizes', host)}). "
                f"Write at least {total}, or make a component smaller."
            )


def timers_fit(inventory: Inventory) -> Iterator[str]:
    """Rules of Patroni and etcd that keep a healthy leader, and one of ours that lets an unheard one step down."""
    timers, place = inventory.first("timers"), f"{inventory.file_of('timers')}: `timers"
    ttl, loop, retry = (number(timers, f"patroni.{name}") for name in ("ttl", "loop_wait", "retry_timeout"))
    if ttl is not None and loop is not None and retry is not None and loop + 2 * retry > ttl:
        yield (
            f"{place}.patroni.ttl` is {ttl}, less than loop_wait {loop} + 2 x retry_timeout {retry}. "
            f"Write `ttl: {loop + 2 * retry}`, or lower the others."
        )
    heartbeat, election = number(timers, "etcd.heartbeat_ms"), number(timers, "etcd.election_ms")
    if heartbeat is not None and election is not None and election < 5 * heartbeat:
        yield (
            f"{place}.etcd.election_ms` is {election}, less than five heartbeats of {heartbeat} ms, so one late packet "
            f"ends a term. Write at least {5 * heartbeat}."
        )
    sender, receiver = (number(timers, f"postgres.wal_{name}_timeout_ms") for name in ("sender", "receiver"))
    if sender is not None and receiver is not None and sender <= receiver:
        yield (
            f"{place}.postgres.wal_sender_timeout_ms` is {sender}, not more than wal_receiver_timeout_ms {receiver}: a "
            f"leader that nobody hears would have given up its standbys before it is asked to step down, and refuse. "
            f"Write more, half as much again is usual: {receiver * 3 // 2}."
        )


# Receivers

# What each type of receiver needs besides its type.
RECEIVERS = {
    "webhook": ["url"],
    "email": ["to", "from", "smarthost"],
    "slack": ["channel"],
    "pagerduty": [],
}


def receivers_are_usable(inventory: Inventory) -> Iterator[str]:
    """Somebody hears of pages and of tickets, in a way that Alertmanager knows."""
    receivers, file = inventory.first("alert_receivers"), inventory.file_of("alert_receivers")
    if not isinstance(receivers, Mapping):
        return
    for name, entries in receivers.items():
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            continue
        place = f"{file}: `alert_receivers.{name}`"
        if not entries and name != "watchdog":
            yield f"{place} is empty, so nobody would hear. Name a receiver, e.g. {{type: slack, channel: '#ops'}}."
        for entry in (entry for entry in entries if isinstance(entry, Mapping)):
            kind = str(entry.get("type"))
            if kind not in RECEIVERS:
                meant = hint(suggestion(kind, list(RECEIVERS)))
                yield f"{place} has a receiver of type `{kind}`.{meant} Known: {', '.join(RECEIVERS)}."
                continue
            for key in (key for key in RECEIVERS[kind] if not entry.get(key)):
                yield f"{place}: a receiver of type {kind} lacks `{key}`. Add it."


# Escrow


def escrow_has_recipients(inventory: Inventory) -> Iterator[str]:
    """What opens everything else is held by two people at least; locally an empty list means that keys are drawn."""
    recipients, place = inventory.first("escrow_recipients"), inventory.file_of("escrow_recipients")
    drawn = inventory.first("machine_provider") == "nspawn" and not recipients
    if is_of_type(recipients, "list") and not drawn:
        yield from (f"{place}: `escrow_recipients` {wrong}" for wrong in wrong_recipients(list(map(str, recipients))))


RULES = (
    groups_are_known,
    files_have_owners,
    groups_have_their_size,
    variables_are_known,
    values_have_their_type,
    addresses_are_unique,
    shared_address_is_shared,
    local_machines_have_a_fleet,
    service_map_is_sound,
    ports_are_used_once,
    secrets_are_set,
    connections_suffice,
    memory_suffices,
    timers_fit,
    receivers_are_usable,
    escrow_has_recipients,
)
