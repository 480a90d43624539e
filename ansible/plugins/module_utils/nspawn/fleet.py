"""A fleet: the machines of one inventory (or one Molecule scenario), their network, and who owns them."""

import ipaddress
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from .image import Image
from .keys import Keys
from .machine import Machine, Record
from .network import Network, dropping_chains
from .preflight import raise_watchers, require_loop_devices, require_space
from .processes import Processes, scan
from .registry import Entry, Registry
from .spec import Spec, Wish, assign, full_name, tag_of
from .system import NspawnError

_MACHINE_MB = 256  # what a machine's disk takes before a role has run, with room to breathe
_BOOT_SECONDS = 60
_STOP_SECONDS = 20


@dataclass
class Report:
    """What was done, or in check mode would be done.

    `machines` has address and boot seconds; `kept` has the volumes that removed machines left.
    """

    actions: dict[str, str] = field(default_factory=dict)
    machines: dict[str, dict[str, str | float]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def did(self, what: str, action: str) -> None:
        """Note one change."""
        self.actions[what] = f"{self.actions[what]}, {action}" if what in self.actions else action


class Fleet:
    """The fleet `fleet_id` of the checkout whose state lies in `state_dir`; with `check` nothing is changed.

    `find_image` is called only when a new machine needs an image.
    """

    def __init__(
        self,
        fleet_id: str,
        subnet: str | None,
        state_dir: Path,
        registry: Registry,
        find_image: Callable[[], Image],
        check: bool = False,
    ) -> None:
        tag = tag_of(fleet_id)
        self.registry = registry
        self.known = registry.entry(fleet_id)
        if subnet is None:
            subnet = self.known.subnet if self.known else str(registry.choose_subnet(fleet_id))
        self.entry = Entry(fleet_id, tag, subnet, str(state_dir))
        self.network = Network(tag, ipaddress.IPv4Network(subnet))
        self.keys = Keys(state_dir)
        self.find_image = find_image
        self.check = check
        self.report = Report()
        self.folder = registry.folder(fleet_id)
        self.kept = registry.kept(fleet_id)

    def machine(self, name: str) -> Machine:
        """Return the machine called `name`, which need not exist; raises NspawnError for an impossible name."""
        return self._machine(name, full_name(self.entry.tag, name))

    def _machine(self, name: str, full: str) -> Machine:
        return Machine(self.folder / "machines" / name, full, self.network, self.kept / name)

    def machines(self) -> list[Machine]:
        """Return every machine that has a folder, whole or half made."""
        return [self.machine(path.name) for path in sorted(self.folder.glob("machines/*"))]

    def records(self) -> list[Record]:
        """Return what is remembered about the fleet's machines."""
        return [record for machine in self.machines() if (record := machine.record())]

    def apply(
        self, state: str, wishes: list[Wish] | None, peers_only: bool = False, delete_volumes: bool = False
    ) -> Report:
        """Bring machines into `state`: those of `wishes`, or all that exist; the others stay as they are.

        `delete_volumes`: machines that become absent take the volumes with them that would be kept.
        """
        if self.check:
            self._apply(state, wishes, peers_only, delete_volumes)
        else:
            with self.registry.busy(self.entry.id):
                self._apply(state, wishes, peers_only, delete_volumes)
        return self.report

    def _apply(self, state: str, wishes: list[Wish] | None, peers_only: bool, delete_volumes: bool) -> None:
        records, everything = self.records(), wishes is None
        if wishes is None:
            wishes = [
                Wish(record.name, record.address, record.memory_mb, record.cpus, record.volumes) for record in records
            ]
        held = {record.name: record.address for record in records}
        specs = assign(wishes, held, self.network.subnet)
        targets = {name: self.machine(name) for name in specs}
        processes = scan()
        self._require_ours(processes)
        orphans = self._end_orphans(processes)
        alive = processes.keys() - orphans
        running = [name for name, machine in targets.items() if machine.full_name in alive]
        if state == "present":
            self._present(specs, targets, running)
        elif state == "absent":
            if everything:
                half_made = {machine.name for machine in self.machines()}
                with_kept = {path.name for path in self.kept.glob("*")}
                targets = {name: self.machine(name) for name in half_made | with_kept}
            self._absent(targets, specs, delete_volumes)
        elif state in ("stopped", "killed"):
            self._end({name: targets[name] for name in running}, state)
        else:
            self._cut(targets, running, None if state == "healed" else "lonely" if peers_only else "cut")
        for name, spec in specs.items():
            self.report.machines.setdefault(name, {})["address"] = spec.address

    def _require_ours(self, processes: dict[str, Processes]) -> None:
        """Raise NspawnError when another checkout, that still exists, owns the fleet and any of its machines runs."""
        owner = self.known.state_dir if self.known else self.entry.state_dir
        if owner == self.entry.state_dir or not Path(owner).exists():
            return
        running = [machine.name for machine in self.machines() if machine.full_name in processes]
        if running:
            raise NspawnError(
                f"The fleet {self.entry.id} belongs to {owner} and runs ({', '.join(running)}). Stop or remove it from "
                "there, or give the `fleet` of this inventory another id and subnet, and its hosts other addresses "
                "(group_vars/all/main.yml, hosts.yml)."
            )

    def _end_orphans(self, processes: dict[str, Processes]) -> set[str]:
        """End what a crashed run left, guests without keeper and machines without folder; return their names."""
        orphans = set()
        known = {machine.full_name: machine for machine in self.machines()}
        for name, found in processes.items():
            if not name.startswith(f"{self.entry.tag}-") or (name in known and found.keeper):
                continue
            orphans.add(name)
            self.report.did(name, "ended an orphan")
            if not self.check:
                (known.get(name) or self._machine(name, name)).kill()
        return orphans

    def _present(self, specs: dict[str, Spec], targets: dict[str, Machine], running: list[str]) -> None:
        self.registry.check(self.entry)
        records = {name: machine.record() for name, machine in targets.items()}
        new = [name for name, record in records.items() if record is None]
        down = [name for name in targets if name not in running]
        self._refuse_moves(specs, [record for name, record in records.items() if record and name in running])
        self._require_volumes(targets, specs, {name: record for name in running if (record := records[name])})
        image = self._image_for(len(new))
        if not self.network.exists():
            self.report.did("network", "made")
            self._warn_of_firewalls()
        cuts = self.network.cuts()
        for name, machine in targets.items():
            if name in new:
                self.report.did(name, "made")
            elif name in down:
                self.report.did(name, "booted")
            elif machine.link in cuts:
                self.report.did(name, "healed")
            for words in machine.volumes.changes(specs[name].volumes):
                self.report.did(name, words)
        if not self.check:
            raise_watchers()
            self.registry.register(self.entry)
            self.network.up()
            self.network.heal([machine.link for machine in targets.values()])
            self._prepare({name: targets[name] for name in down}, specs, image)
        self._resize(specs, {name: record for name, record in records.items() if record and name in running})
        if not self.check:
            self._boot(targets, specs, down)

    def _warn_of_firewalls(self) -> None:
        """Docker and ufw drop what this computer forwards; our own chains cannot overrule that."""
        for chain in dropping_chains():
            bridge = self.network.bridge
            self.report.warnings.append(
                f"The firewall chain {chain} of this computer drops forwarded packets, so machines may not reach the "
                f"world. Let them: nft insert rule {chain} iifname {bridge} accept; "
                f"nft insert rule {chain} oifname {bridge} ct state established,related accept"
            )

    def _image_for(self, machines: int) -> Path:
        """Return the tree that new machines stand on, building it when needed."""
        if not machines:
            return Path("/nonexistent")
        require_space(self.registry.home, _MACHINE_MB * machines, f"{machines} new machines", "ARCHES_STATE")
        image = self.find_image()
        tree = image.find()
        if tree is None:
            self.report.did("image", "built")
        return image.ensure()[0] if not self.check else tree or image.folder

    @staticmethod
    def _refuse_moves(specs: dict[str, Spec], running: list[Record]) -> None:
        for record in running:
            wanted = specs[record.name].address
            if record.address != wanted:
                raise NspawnError(
                    f"{record.name} runs with the address {record.address}, and the inventory now says {wanted}. "
                    f"Stop it first: `-e state=stopped --limit {record.name}`."
                )

    def _require_volumes(self, targets: dict[str, Machine], specs: dict[str, Spec], running: dict[str, Record]) -> None:
        """Raise NspawnError, before anything is done, for volumes that cannot be had."""
        megabytes = 0
        for name, machine in targets.items():
            wanted = specs[name].volumes
            machine.volumes.refuse(wanted, running[name].volumes if name in running else None)
            megabytes += machine.volumes.missing_mb(wanted)
        if megabytes:
            require_space(self.registry.home, megabytes, "volumes", "ARCHES_STATE")
        if any(specs[name].volumes for name in targets if name not in running):
            require_loop_devices()

    def _prepare(self, machines: dict[str, Machine], specs: dict[str, Spec], image: Path) -> None:
        self.keys.ensure()
        public_key, resolv_conf = self.keys.public(), _resolv_conf()

        def prepare(name: str) -> None:
            machines[name].clean()
            machines[name].prepare(specs[name], image, public_key, resolv_conf)

        _each(prepare, machines)
        self.keys.write_known_hosts(self.records())

    def _resize(self, specs: dict[str, Spec], running: dict[str, Record]) -> None:
        for name, record in running.items():
            spec = specs[name]
            if (record.memory_mb, record.cpus) != (spec.memory_mb, spec.cpus):
                self.report.did(name, "resized")
                if not self.check:
                    self.machine(name).limit(spec)
            changed = replace(record, **vars(spec))
            if changed != record and not self.check:
                self.machine(name).volumes.settle(spec.volumes)
                self.machine(name).remember(changed)

    def _boot(self, machines: dict[str, Machine], specs: dict[str, Spec], down: list[str]) -> None:
        def up(name: str) -> float:
            if name in down:
                return machines[name].boot(specs[name], _BOOT_SECONDS)
            machines[name].wait_for_login(specs[name].address, _BOOT_SECONDS)
            return 0.0

        for name, seconds in _each(up, machines).items():
            self.report.machines.setdefault(name, {})["boot_seconds"] = round(seconds, 2)

    def _absent(self, targets: dict[str, Machine], specs: dict[str, Spec], delete_volumes: bool) -> None:
        there = {name: machine for name, machine in targets.items() if machine.directory.exists()}
        for name in there:
            self.report.did(name, "removed")
        last = all(machine.name in there for machine in self.machines())
        if last and (self.network.leftovers() or self.folder.exists()):
            self.report.did("network", "removed")
        # Of a machine that is gone already, what was kept stays so, whatever the inventory says now.
        wanted = {name: specs[name].volumes if name in specs and name in there else () for name in targets}
        kept = {name: names for name in targets if (names := targets[name].volumes.kept_names(wanted[name]))}
        if delete_volumes:
            for name, names in kept.items():
                self.report.did(name, f"deleted the volumes {', '.join(names)}")
        else:
            self.report.kept = kept
        if self.check:
            return
        for name, machine in there.items():
            machine.volumes.settle(wanted[name])
        _each(lambda name: there[name].destroy(), there)
        for name in kept if delete_volumes else ():
            targets[name].volumes.delete_kept()
        self.keys.write_known_hosts(self.records())
        if last:
            self.network.down()
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.network.heal([machine.link for machine in there.values()])

    def _end(self, running: dict[str, Machine], state: str) -> None:
        for name in running:
            self.report.did(name, state)
        if not self.check:
            _each(
                lambda name: running[name].stop(_STOP_SECONDS) if state == "stopped" else running[name].kill(), running
            )

    def _cut(self, targets: dict[str, Machine], running: list[str], wanted: str | None) -> None:
        down = [name for name in targets if name not in running]
        if down and wanted:
            raise NspawnError(f"{', '.join(down)} does not run and cannot be partitioned: `-e state=present` first.")
        now = self.network.cuts()
        change = {name: machine.link for name, machine in targets.items() if now.get(machine.link) != wanted}
        for name in change:
            self.report.did(name, "partitioned" if wanted else "healed")
        if change and not self.check:
            self.network.heal(list(change.values()))
            if wanted:
                self.network.cut(list(change.values()), peers_only=wanted == "lonely")


def _each[Result](action: Callable[[str], Result], names: Iterable[str]) -> dict[str, Result]:
    """Run `action` for all names side by side; the first failure is raised after all have ended."""
    names = list(names)
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        futures = {name: pool.submit(action, name) for name in names}
    return {name: future.result() for name, future in futures.items()}


def _resolv_conf() -> str:
    """Return a resolv.conf for machines: this computer's, or what stands behind its local stub."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        text = path.read_text() if path.exists() else ""
        servers = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver")]
        if servers and not all(server.startswith("127.") or server == "::1" for server in servers):
            return text
    raise NspawnError(
        "No name server that machines could use: /etc/resolv.conf names only this computer itself. "
        "Put the address of a name server on the network there."
    )
