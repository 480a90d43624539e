"""What the tests of recoveries share: a small etcd with three members, an edge that answers, and playbooks of toys."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.server
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet_lock import KEY, Etcd, context_of, text64
from lib.debian13 import program
from lib.waiting import wait_for
from pki import Authority, client_certificate, key_text, new_authority, new_key, sign, subject, to_pem

PROJECT = Path(__file__).resolve().parents[2]
NOW = datetime.datetime.now(datetime.UTC)
DATA = {"data1": "127.0.0.31", "data2": "127.0.0.32", "data3": "127.0.0.33"}
EDGE = "127.0.0.11"
NAME = "api.toy.test"


def free_port(*addresses: str) -> int:
    """A port that is free on all of these addresses."""
    while True:
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port: int = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    with socket.socket() as other:
                        other.bind((address, port))
            except OSError:
                continue
            return port


@dataclasses.dataclass(frozen=True)
class Ca:
    """A CA of the tests and what it signed."""

    key: str
    certificate: str
    folder: Path

    def server(self, name: str, *names: str) -> tuple[Path, Path]:
        """Files with a certificate for these names and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(subject(name)).sign(key, hashes.SHA256())
        signed = sign(to_pem(request), name, [name, *names], Authority(self.key, self.certificate), 1, NOW)
        certificate_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate_file.write_text(signed)
        key_file.write_text(key_text(key))
        return certificate_file, key_file

    @property
    def file(self) -> Path:
        """Its certificate."""
        return self.folder / "ca.crt"

    @property
    def own(self) -> str:
        """Key and certificate of a client, as the controller makes them."""
        return "".join(client_certificate("controller", Authority(self.key, self.certificate), NOW))


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    """The environment's CA."""
    key = new_key()
    made = Ca(key, new_authority(key, "toy", 2, NOW), tmp_path_factory.mktemp("ca"))
    made.file.write_text(made.certificate)
    return made


class Members:
    """Three real members of etcd on loopback, in one cluster, over mutual TLS."""

    def __init__(self, ca: Ca, folder: Path) -> None:
        self.ca, self.folder = ca, folder
        self.port, self.peer_port = free_port(*DATA.values()), free_port(*DATA.values())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.endpoints = {name: f"https://{address}:{self.port}" for name, address in DATA.items()}

    def start(self, name: str) -> None:
        """Start one member."""
        certificate, key = self.ca.server(name, DATA[name])
        # Among themselves they speak plainly: on loopback all of them come from one address, which no certificate fits.
        cluster = ",".join(f"{member}=http://{address}:{self.peer_port}" for member, address in DATA.items())
        peer = f"http://{DATA[name]}:{self.peer_port}"
        command = [
            program("etcd-server", "etcd"), f"--name={name}", f"--data-dir={self.folder / name}",
            f"--listen-client-urls={self.endpoints[name]}", f"--advertise-client-urls={self.endpoints[name]}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster={cluster}",
            f"--cert-file={certificate}", f"--key-file={key}", f"--trusted-ca-file={self.ca.file}",
            "--client-cert-auth", "--unsafe-no-fsync", "--log-level=warn",
        ]  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)

    def signal(self, number: signal.Signals, *names: str) -> None:
        """Stop members without their noticing (SIGSTOP), or let them go on (SIGCONT)."""
        for name in names:
            self.processes[name].send_signal(number)

    def end(self) -> None:
        """End all members."""
        for process in self.processes.values():
            process.kill()
            process.wait(timeout=10)

    @property
    def leader(self) -> str:
        """Name of the member that leads."""
        status = self.client.call("maintenance/status", {})
        members = self.client.call("cluster/member/list", {})["members"]
        return next(str(member["name"]) for member in members if member["ID"] == status["leader"])

    @property
    def client(self) -> Etcd:
        """A client of our own."""
        return Etcd(self.endpoints, context_of(self.ca.certificate, self.ca.own))


@pytest.fixture(scope="session")
def cluster(ca: Ca, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    """A healthy etcd."""
    members = Members(ca, tmp_path_factory.mktemp("etcd"))
    try:
        for name in DATA:
            members.start(name)
        wait_for("etcd has a quorum", lambda: answers(members), timeout_s=60)
        yield members
    finally:
        members.end()


def answers(members: Members) -> bool:
    """Whether etcd answers."""
    try:
        members.client.call("kv/range", {"key": "YQ=="})
    except Exception as reason:
        raise AssertionError(str(reason)) from reason
    return True


@pytest.fixture
def etcd(cluster: Members) -> Iterator[Members]:
    """A healthy etcd without a lock, before and after the test."""
    forget(cluster)
    yield cluster
    cluster.signal(signal.SIGCONT, *DATA)
    wait_for("etcd has a quorum again", lambda: answers(cluster), timeout_s=60)
    forget(cluster)


def forget(members: Members) -> None:
    """Remove the lock, whoever has it."""
    members.client.call("kv/deleterange", {"key": text64(KEY)})


class EdgeOfToys(http.server.ThreadingHTTPServer):
    """Answers like the API; `refuse` is the number of writes that it refuses first."""

    daemon_threads = True
    refuse = 0
    writes = 0
    forgets = False


class Api(http.server.BaseHTTPRequestHandler):
    """Users are not kept; artifacts are."""

    server: EdgeOfToys
    kept: dict[str, Any] = {}  # noqa: RUF012 (shared by all connections on purpose)

    def do_POST(self) -> None:
        """Register, log in, write."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/auth/register":
            self.answer(201, {})
        elif self.path == "/v1/auth/login":
            self.answer(200, {"access_token": "token"})
        elif self.headers["Authorization"] != "Bearer token":
            self.answer(401, {})
        elif self.server.refuse:
            self.server.refuse -= 1
            self.answer(503, {"title": "no leader"})
        else:
            self.server.writes += 1
            self.kept["1"] = {"id": "1", **body}
            self.answer(201, self.kept["1"])

    def do_GET(self) -> None:
        """Read."""
        self.answer(*((404, {}) if self.server.forgets else (200, self.kept["1"])))

    def do_DELETE(self) -> None:
        """Remove."""
        self.answer(204, None)

    def answer(self, status: int, body: Any) -> None:
        """Send JSON."""
        self.send_response(status)
        text = b"" if body is None else json.dumps(body).encode()
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def edge(ca: Ca) -> Iterator[EdgeOfToys]:
    """An edge by the API's name."""
    server = EdgeOfToys((EDGE, 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ca.server(NAME))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


class Toy:
    """An environment whose hosts are this computer, and a recovery playbook of toys in a folder of its own.

    Each stage writes its name into a log; it waits before and after that where a file says so.
    """

    stages = ("one", "two", "three")

    def __init__(self, folder: Path, ca: Ca, etcd: Members, edge: EdgeOfToys) -> None:
        self.folder, self.etcd, self.edge = folder, etcd, edge
        self.log = folder / "log"
        self.record = folder / "state" / "recover" / "toy.jsonl"
        self.copy = folder / "records" / "toy.jsonl"
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
        self.variables: dict[str, Any] = {
            "environment_name": "local", "domain": NAME.partition(".")[2], "state_dir": str(folder / "state"),
            "certificates_ca_certificate": ca.certificate, "certificates_ca_key": ca.key,
            "recovery_records": str(folder / "records"), "recovery_proof_file": str(folder / "last.json"),
            "recovery_proof_timeout_s": 2, "backups": {"prove_every_h": 24}, "redis_admin_password": "none",
            "services": {
                "etcd_client": {"port": etcd.port}, "edge_https": {"port": edge.server_port},
                **{name: {"port": free_port(*DATA.values())} for name in ("patroni", "redis", "sentinel")},
            },
        }  # fmt: skip
        self.hosts: dict[str, dict[str, dict[str, Any]]] = {
            "data": {name: {"address": address, **local} for name, address in DATA.items()},
            "edge": {"edge1": {"address": EDGE, **local}},
            "ops": {"ops1": {"address": "127.0.0.41", **local}},
        }
        (folder / "ansible" / "recover" / "toy").mkdir(parents=True)
        (folder / "ansible" / "tasks").symlink_to(PROJECT / "ansible" / "tasks")
        self.write("toy.yml", [self.play()])
        self.plan()
        for stage in self.stages:
            self.write(f"toy/{stage}.yml", self.stage(stage))

    def write(self, name: str, content: Any) -> None:
        """Write a file of the playbook."""
        (self.folder / "ansible" / "recover" / name).write_text(json.dumps(content))

    def play(self, hosts: str = "ops", **more: Any) -> dict[str, Any]:
        """The playbook on some hosts, with more in its definition."""
        recovery = {
            "incident": "toy", "arguments": {"colour": "{{ colour | default('red') }}"},
            "stages": {stage: f"Write {stage}" for stage in self.stages}, **more,
        }  # fmt: skip
        run = {"ansible.builtin.include_tasks": "../tasks/recover/run.yml", "vars": {"recovery": recovery}}
        return {"hosts": hosts, "gather_facts": False, "any_errors_fatal": True, "tasks": [run]}

    def plan(self, **more: Any) -> None:
        """What plan.yml says."""
        plan = {"now": ["nobody leads"], "hosts": ["data1"], "outage": "none", "loss": "nothing", **more}
        self.write("toy/plan.yml", [{"ansible.builtin.set_fact": {"plan": plan}}])

    def stage(self, name: str) -> list[dict[str, Any]]:
        """The tasks of one stage."""
        once = {"delegate_to": "localhost", "run_once": True, "vars": {"ansible_become": False}}
        script = (
            "for when in before after; do "
            f'if test -e "hold-{name}-$when"; then touch "reached-{name}-$when"; '
            f'while test -e "hold-{name}-$when"; do sleep 0.05; done; fi; '
            f'if test $when = before; then echo {name} >> log; test ! -e "fail-{name}" || exit 1; fi; done'
        )
        outcome = "{{ outcome | combine({'" + name + "': colour | default('red')}) }}"
        return [
            {"ansible.builtin.shell": {"cmd": script, "chdir": str(self.folder)}, **once},
            {"ansible.builtin.set_fact": {"outcome": outcome}},
        ]

    def start(self, *options: str, **popen: Any) -> Playbook:
        """Start the playbook in the background."""
        inventory = self.folder / "hosts.yml"
        groups = {name: {"hosts": hosts} for name, hosts in self.hosts.items()}
        inventory.write_text(json.dumps({"all": {"children": groups, "vars": self.variables}}))
        command = [
            Path(sys.executable).parent / "ansible-playbook", "-i", inventory, *options,
            self.folder / "ansible" / "recover" / "toy.yml",
        ]  # fmt: skip
        environment = {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **popen}
        return Playbook(list(map(str, command)), env=environment, **given)

    def run(self, *options: str) -> tuple[int, str]:
        """Run the playbook: exit status and what it said."""
        process = self.start(*options)
        try:
            said, _ = process.communicate(timeout=120)
        finally:
            process.end()
        return process.returncode, said

    @property
    def written(self) -> list[str]:
        """The stages that did something, in order, with repetitions."""
        return self.log.read_text().split() if self.log.exists() else []

    def events(self) -> list[dict[str, Any]]:
        """The record."""
        return [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []


class Playbook(subprocess.Popen[str]):
    """A run of ansible-playbook that can be ended with everything it started: tasks have sessions of their own."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.mark = f"ARCHES_TOY={secrets.token_hex(8)}"
        environment = {**os.environ, **dict([self.mark.split("=")]), **options.pop("env")}
        super().__init__(command, env=environment, text=True, start_new_session=True, **options)

    def end(self) -> None:
        """The hard way; what has ended already is fine. The keeper of the lock stays and sees it."""
        if self.poll() is None:
            self.kill()
        self.wait(timeout=10)
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                if ours and b"fleet_lock.py" not in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)


@pytest.fixture
def toy(tmp_path: Path, ca: Ca, etcd: Members, edge: EdgeOfToys) -> Toy:
    """An environment of toys."""
    return Toy(tmp_path, ca, etcd, edge)
