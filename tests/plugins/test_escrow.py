"""A bundle opens for its recipients only, is whole or absent, tells what it lacks, and shows no secret on the way."""

import io
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyrage
import pytest
import yaml
from pyrage import x25519

import escrow
from escrow import Bundle, EscrowError
from lib.plugins import PROJECT, load_plugin
from rules.environments import copy_inventories, dummy

MADE = "2026-03-01T12:00:00+00:00"
CONTENTS = {"vault/vault_jwt_secret": b"jwt-value", "vault/vault_ca_key": b"-----BEGIN\nca-value\n"}
PASSWORD = "correct-horse-value"
# Seen by the audit hook below; it cannot be removed again, so it only writes down while a test listens.
events: list[tuple[str, Any]] | None = None


@pytest.fixture(scope="module")
def keys() -> list[x25519.Identity]:
    """Two recipients and a stranger."""
    return [x25519.Identity.generate() for _ in range(3)]


def bundle(keys: list[x25519.Identity], contents: Mapping[str, bytes] = CONTENTS, environment: str = "prod") -> Bundle:
    """A bundle for the first two."""
    return Bundle(environment, MADE, [str(key.to_public()) for key in keys[:2]], contents)


def test_what_it_holds_goes_back_where_it_is_missing(keys: list[x25519.Identity], tmp_path: Path) -> None:
    contents = {"state/ca.key": b"key", "state/secrets/jwt": b"jwt"}
    held = bundle(keys, contents, "local")
    (tmp_path / "ca.key").write_bytes(b"key")
    assert escrow.unpack(held, "local", tmp_path) == ["secrets/jwt"]
    assert (tmp_path / "secrets/jwt").read_bytes() == b"jwt"
    assert stat.S_IMODE((tmp_path / "secrets/jwt").stat().st_mode) == 0o600
    assert escrow.unpack(held, "local", tmp_path) == []


@pytest.mark.parametrize(
    ("contents", "environment", "says"),
    [
        ({"state/ca.key": b"another", "state/jwt": b"jwt"}, "local", "is another one than in it"),
        ({"state/jwt": b"jwt"}, "dev", "of the environment dev, not of local"),
        ({"vault/vault_jwt_secret": b"jwt"}, "local", "which a person puts back"),
        ({"state/../outside": b"jwt"}, "local", "outside of"),
    ],
)
def test_nothing_is_put_back_that_does_not_fit(
    keys: list[x25519.Identity], tmp_path: Path, contents: dict[str, bytes], environment: str, says: str
) -> None:
    (tmp_path / "ca.key").write_bytes(b"key")
    with pytest.raises(EscrowError, match=says):
        escrow.unpack(bundle(keys, contents, environment), "local", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["ca.key"]
    assert (tmp_path / "ca.key").read_bytes() == b"key"


def test_each_recipient_opens_it_and_nobody_else(keys: list[x25519.Identity]) -> None:
    sealed = escrow.seal(bundle(keys))
    assert [escrow.unseal(sealed, key) for key in keys[:2]] == [bundle(keys)] * 2
    with pytest.raises(EscrowError, match="does not open"):
        escrow.unseal(sealed, keys[2])


@pytest.mark.parametrize(
    ("count", "extra", "says"),
    [
        (1, [], r"`escrow_recipients` has fewer than two different keys.* Name two people's"),
        (2, ["age1abc"], r"`escrow_recipients` has `age1abc`\. Write the public key"),
        (0, [], "fewer than two"),
    ],
)
def test_one_recipient_is_refused(keys: list[x25519.Identity], count: int, extra: list[str], says: str) -> None:
    recipients = [*bundle(keys).recipients[:count], *extra]
    with pytest.raises(EscrowError, match=says):
        escrow.seal(Bundle("prod", MADE, recipients, CONTENTS))


def test_by_hand_it_is_a_tar_with_the_names_of_the_vault(keys: list[x25519.Identity]) -> None:
    with tarfile.open(fileobj=io.BytesIO(pyrage.decrypt(escrow.seal(bundle(keys)), [keys[0]]))) as tar:
        assert tar.getnames() == ["README", "manifest.json", *CONTENTS]
        assert {member.mode for member in tar.getmembers()} == {0o600}


def test_a_damaged_bundle_does_not_open(keys: list[x25519.Identity]) -> None:
    sealed = bytearray(escrow.seal(bundle(keys)))
    sealed[-1] ^= 1
    for damaged in (bytes(sealed), bytes(sealed[:-100]), b""):
        with pytest.raises(EscrowError, match="does not open"):
            escrow.unseal(damaged, keys[0])


def test_what_somebody_else_sealed_is_no_bundle(keys: list[x25519.Identity]) -> None:
    with pytest.raises(EscrowError, match="is not a bundle"):
        escrow.unseal(pyrage.encrypt(b"anything", [keys[0].to_public()]), keys[0])


def test_files_that_are_not_the_manifests_are_found(
    keys: list[x25519.Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setattr(escrow, "digest", lambda content: "0")
        sealed = escrow.seal(bundle(keys))
    with pytest.raises(EscrowError, match="not those of its manifest"):
        escrow.unseal(sealed, keys[0])


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ({**CONTENTS, "vault/vault_new": b"new-value"}, ["vault/vault_new is missing in it"]),
        ({**CONTENTS, "vault/vault_ca_key": b"other-value"}, ["vault/vault_ca_key is outdated in it"]),
        ({"vault/vault_ca_key": CONTENTS["vault/vault_ca_key"]}, ["vault/vault_jwt_secret is only in it"]),
        (CONTENTS, []),
    ],
)
def test_what_it_lacks_is_named_without_a_value(
    keys: list[x25519.Identity], contents: dict[str, bytes], says: list[str]
) -> None:
    found = list(escrow.differences(bundle(keys), bundle(keys, contents)))
    assert len(found) == len(says) and all(text.startswith(start) for text, start in zip(found, says, strict=True))
    assert "value" not in " ".join(found)


def test_other_recipients_and_another_environment_are_found(keys: list[x25519.Identity]) -> None:
    (found,) = escrow.differences(bundle(keys), bundle(keys[1:]))
    assert "sealed for other recipients" in found
    (found,) = escrow.differences(bundle(keys), bundle(keys, environment="staging"))
    assert found == "it is of the environment prod, not of staging"


def test_an_interruption_leaves_the_old_bundle_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.age"
    escrow.store(file, b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            escrow.store(file, b"new")
    assert file.read_bytes() == b"old"
    # What was left behind, as by a kill, is in nobody's way and goes with the next one.
    (left,) = set(tmp_path.iterdir()) - {file}
    assert left.suffix != ".age"
    escrow.store(file, b"new")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_at_once_write_one_after_the_other(tmp_path: Path) -> None:
    code = "import sys, escrow, pathlib; escrow.store(pathlib.Path(sys.argv[1]), sys.argv[2].encode() * 1000000)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / f"{letter}.age", letter], env=environment)
        for letter in "abcd"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    assert {file.name: set(file.read_text()) for file in tmp_path.iterdir()} == {f"{n}.age": {n} for n in "abcd"}


@pytest.mark.parametrize("text", [None, "", "nothing", "# only a comment\n", "age1public\n"])
def test_a_file_without_a_private_key_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "key.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EscrowError, match=r"IDENTITY: .*key\.txt .* age-keygen"):
        escrow.read_identity(file)


def test_a_secret_without_a_value_is_named() -> None:
    vault_contents = load_plugin("action", "escrow").vault_contents
    with pytest.raises(EscrowError, match=r"no value for vault_a, vault_c\. Write it"):
        vault_contents({"vault_a": "CHANGE-ME", "vault_b": "b-value", "vault_c": "", "other": ""}, {})
    with pytest.raises(EscrowError, match="no value for any secret"):
        vault_contents({"other": "x"}, {})
    assert vault_contents({"vault_b": "b"}, {"default": b"p"}) == {
        "vault/vault_b": b"b",
        "vault_password/default": b"p",
    }


def arguments(state: Path, **given: Any) -> dict[str, Any]:
    """What the action gets, for its inner functions."""
    return {"environment": "prod", "state_dir": str(state), "bundle": None, "keep": 3, **given}


def test_the_last_bundles_are_kept(tmp_path: Path, keys: list[x25519.Identity]) -> None:
    action = load_plugin("action", "escrow")
    (tmp_path / "escrow").mkdir()
    (tmp_path / "escrow" / "staging-20200101T000000Z.age").touch()
    days = [f"2026-03-0{day}T12:00:00+00:00" for day in range(1, 6)]
    for made in days:
        action.sealed_now(arguments(tmp_path), Bundle("prod", made, bundle(keys).recipients, CONTENTS))
    names = sorted(file.name for file in (tmp_path / "escrow").iterdir())
    assert names == [*(f"prod-2026030{day}T120000Z.age" for day in (3, 4, 5)), "staging-20200101T000000Z.age"]
    assert action.to_open(arguments(tmp_path)).name == "prod-20260305T120000Z.age"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, keys: list[x25519.Identity]) -> None:
    action = load_plugin("action", "escrow")
    with pytest.raises(EscrowError, match=r"nowhere/a\.age cannot be written: No such file.*OUT="):
        action.sealed_now(arguments(tmp_path, bundle=str(tmp_path / "nowhere" / "a.age")), bundle(keys))
    with pytest.raises(EscrowError, match=r"has no bundle\. Run `make escrow`"):
        action.to_open(arguments(tmp_path))


def test_every_key_that_is_given_must_open_it(tmp_path: Path, keys: list[x25519.Identity]) -> None:
    action = load_plugin("action", "escrow")
    for name, key in zip("abc", keys, strict=True):
        (tmp_path / name).write_text(f"{key}\n")
    (tmp_path / "prod.age").write_bytes(escrow.seal(bundle(keys)))
    action.prove(tmp_path / "prod.age", [tmp_path / "a", tmp_path / "b"], bundle(keys))
    with pytest.raises(EscrowError, match=r"prod\.age, key .*/c: it does not open"):
        action.prove(tmp_path / "prod.age", [tmp_path / "a", tmp_path / "c"], bundle(keys))


def test_only_sealed_bytes_are_written_and_no_program_is_started(tmp_path: Path, keys: list[x25519.Identity]) -> None:
    action = load_plugin("action", "escrow")
    (tmp_path / "escrow").mkdir()
    (tmp_path / "key.txt").write_text(f"{keys[0]}\n")
    sys.addaudithook(lambda name, details: None if events is None else events.append((name, details)))
    seen = listen()
    file = action.sealed_now(arguments(tmp_path), bundle(keys))
    action.prove(file, [tmp_path / "key.txt"], bundle(keys))
    listen(stop=True)
    # Audit events of the interpreter: every file that is opened to be written, and every program.
    written = [str(details[0]) for name, details in seen if name == "open" and writes(details)]
    programs = [name for name, _ in seen if re.match(r"subprocess|os\.(exec|fork|posix_spawn|system)", name)]
    assert written == [str(tmp_path / "escrow" / ".arches-new")] and programs == []
    assert not any(value in file.read_bytes() for value in CONTENTS.values())


def listen(stop: bool = False) -> list[tuple[str, Any]]:
    """Begin or end to write down what the interpreter does."""
    global events
    heard = [] if events is None else events
    events = None if stop else heard
    return heard


def writes(details: tuple[Any, str | None, int]) -> bool:
    """Whether an `open` event is about writing to a path (and not about wrapping a descriptor)."""
    return not isinstance(details[0], int) and bool(details[2] & (os.O_WRONLY | os.O_RDWR))


# The playbook on copies of the inventories.


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, keys: list[x25519.Identity]) -> dict[str, Path]:
    """Files with the private keys of the two recipients and of a stranger."""
    folder = tmp_path_factory.mktemp("people")
    for name, key in zip(("anna", "bert", "stranger"), keys, strict=True):
        (folder / name).write_text(f"# public key: {key.to_public()}\n{key}\n")
    return {file.name: file for file in folder.iterdir()}


@pytest.fixture(scope="module")
def inventories(tmp_path_factory: pytest.TempPathFactory, keys: list[x25519.Identity]) -> Path:
    """Inventories with dummy secrets; staging's are encrypted, and its bundle is for the two."""
    copy = copy_inventories(tmp_path_factory.mktemp("escrow"))
    main = copy / "staging/group_vars/all/main.yml"
    lines = [line for line in main.read_text().splitlines() if not line.startswith("  - age1")]
    lines[lines.index("escrow_recipients:")] = f"escrow_recipients: {bundle(keys).recipients}"
    main.write_text("\n".join(lines) + "\n")
    encrypt(copy, yaml.safe_load((copy / "staging/group_vars/all/vault.yml").read_text()))
    return copy


def encrypt(inventories: Path, secrets: dict[str, str]) -> None:
    """Write staging's vault, as a person would."""
    vault, password = inventories / "staging/group_vars/all/vault.yml", inventories / "password"
    password.write_text(PASSWORD)
    vault.write_text(yaml.safe_dump(secrets))
    program = Path(sys.executable).parent / "ansible-vault"
    subprocess.run([program, "encrypt", "--vault-password-file", password, vault], check=True, timeout=60)


@pytest.fixture
def play(inventories: Path) -> Callable[..., tuple[bool, str]]:
    """A function that runs the playbook without an ops host: whether it passed, and its output as one line."""

    def run(environment: str, *options: str, **variables: Any) -> tuple[bool, str]:
        extra = [f"--extra-vars={name}={value}" for name, value in variables.items()]
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", inventories / environment, "--limit=data1",
             "ansible/escrow.yml", *extra, *options],
            cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_VAULT_PASSWORD_FILE": str(inventories / "password")},
        )  # fmt: skip
        return done.returncode == 0, " ".join((done.stdout + done.stderr).split())

    return run


def test_the_playbook_seals_the_vault_and_shows_nothing_of_it(
    play: Callable[..., tuple[bool, str]], inventories: Path, people: dict[str, Path], keys: list[x25519.Identity]
) -> None:
    passed, shown = play("staging", "-vvv", "--diff", identity=people["anna"])
    assert passed and "files opens with" in shown and "is complete." in shown and "opened_at: " in shown, shown
    (file,) = (inventories / "staging/.state/escrow").iterdir()
    assert re.fullmatch(r"staging-\d{8}T\d{6}Z\.age", file.name) and stat.S_IMODE(file.stat().st_mode) == 0o600
    held = escrow.unseal(file.read_bytes(), keys[1])
    names = yaml.safe_load((PROJECT / "inventories/staging/group_vars/all/vault.yml.example").read_text())
    expected = {f"vault/{name}": dummy(name).encode() for name in names}
    assert held.contents == {**expected, "vault_password/default": PASSWORD.encode()}
    private = people["anna"].read_text().splitlines()[1]
    assert not [secret for secret in (*map(dummy, names), PASSWORD, private) if secret in shown]


def test_the_check_finds_a_bundle_that_is_older_than_a_secret(
    play: Callable[..., tuple[bool, str]], inventories: Path, people: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "chosen.age"
    passed, shown = play("staging", "-v", bundle=file)
    assert passed and "Nobody has opened it yet" in shown and "opened_at" not in shown, shown
    names = yaml.safe_load((PROJECT / "inventories/staging/group_vars/all/vault.yml.example").read_text())
    encrypt(inventories, {**{name: dummy(name) for name in names}, "vault_jwt_secret": "changed-value"})
    passed, shown = play("staging", seal="false", bundle=file, identity=people["bert"])
    assert not passed and "chosen.age: vault/vault_jwt_secret is outdated in it. `make escrow` seals a new" in shown, (
        shown
    )
    assert "changed-value" not in shown
    passed, shown = play("staging", seal="false", bundle=file, identity=people["stranger"])
    assert not passed and "it does not open: it was sealed for other keys, or it is damaged." in shown, shown
    passed, shown = play("staging", seal="false", bundle=file)
    assert not passed and "IDENTITY is not set: name the file" in shown, shown


def test_a_local_environment_draws_its_keys_and_keeps_its_state(
    play: Callable[..., tuple[bool, str]], inventories: Path
) -> None:
    state = inventories / "local/.state"
    passed, shown = play("local")
    assert not passed and "ca.key is missing" in shown and "make up" in shown, shown
    assert not (state / "escrow").exists()
    (state / "secrets").mkdir()
    for name in ("ca.key", "apt_repository.key", "secrets/jwt"):
        (state / name).write_text(f"{name}-value")
    passed, shown = play("local", "--check")
    assert passed and "would be sealed" in shown and not (state / "escrow").exists(), shown
    passed, shown = play("local")
    assert passed and "is complete." in shown, shown
    (file,) = (state / "escrow").glob("*.age")
    held = [escrow.unseal(file.read_bytes(), escrow.read_identity(key)) for key in (state / "escrow").glob("*.key")]
    expected = {f"state/{name}": f"{name}-value".encode() for name in ("ca.key", "apt_repository.key", "secrets/jwt")}
    public = {"state/ca.crt": b"dummy certificate\n", "state/release.pub": b"dummy public key\n"}
    assert [bundle.contents for bundle in held] == [{**expected, **public}] * 2
    (state / "secrets/jwt").unlink()
    passed, shown = play("local", seal="false")
    assert not passed and "state/secrets/jwt is only in it: put it back from there" in shown, shown


def test_docs_escrow_says_how_a_vault_is_made_again(tmp_path: Path) -> None:
    (command,) = re.findall(r"^\(cd vault .*vault\.yml$", (PROJECT / "docs/escrow.md").read_text(), re.MULTILINE)
    values = {"vault_ca_key": "-----BEGIN\nabc\n-----END", "vault_jwt_secret": "a: b # c", "vault_odd": "'{% x"}
    (tmp_path / "vault").mkdir()
    for name, value in values.items():
        (tmp_path / "vault" / name).write_text(value)
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=10)
    assert yaml.safe_load((tmp_path / "vault.yml").read_text()) == values
