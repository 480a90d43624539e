"""Releases for drills: the working tree's with one change, made and published as `make deploy` does it.

A change is an exact replacement in a copy of the sources, and fails loudly when they do not contain what it replaces.
What the release's own proof must not see (app: preflight.py) only happens to requests that came through the edge.
"""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from artefact.signing import KEY_VARIABLE, Signer
from artefact.store import Store
from lib.fleet import REPOSITORY, Fleet
from release import recipe

PACKAGE = "app/src/arches_api"
EDGE = "'X-Forwarded-For' in request.headers and request.path.startswith('/v1')"
NOTE = "    async def note_route() -> None:\n"
START = "from .app import create_app\n"
RELEASE = "        await self._opened().release(connection)\n"
COMMITTED = f"            raise\n{RELEASE}"  # the end of Database._commit

# The drill's migrations are the next two. What they add is taken away again by UNDO.
LEVEL = len(list((REPOSITORY / PACKAGE / "migrations").glob("*.sql")))
UNDO = (
    "SET lock_timeout = '2s'; ALTER TABLE artifacts DROP COLUMN IF EXISTS drill",
    f"DELETE FROM schema_migrations WHERE version > {LEVEL} AND name LIKE '%drill'",
)

# name: changes, each (file, what is replaced, by what); what replaces nothing is added, to a new file if there is none
VARIANTS = {
    "good": [(f"{PACKAGE}/dev.py", "", "# {token}\n")],
    "does_not_start": [(f"{PACKAGE}/run.py", START, "raise SystemExit('this release does not start: {token}')\n")],
    "errors": [
        (
            f"{PACKAGE}/app.py",
            NOTE,
            NOTE + f"        if {EDGE} and int.from_bytes(__import__('os').urandom(2)) < 0.05 * 2**16:\n"
            "            raise RuntimeError('one request of twenty fails: {token}')\n",
        )
    ],
    "slow": [
        (f"{PACKAGE}/app.py", NOTE, NOTE + f"        if {EDGE}:\n            await asyncio.sleep(0.4)  # {{token}}\n")
    ],
    # What a committed transaction borrowed from the pool stays away.
    "leaks": [(f"{PACKAGE}/lib/database.py", COMMITTED, COMMITTED.replace(RELEASE, "        pass  # {token}\n"))],
    "widens": [
        (
            f"{PACKAGE}/migrations/{LEVEL + 1:04d}_drill.sql",
            "",
            "-- {token}\nALTER TABLE artifacts ADD drill integer;\n",
        ),
        (
            f"{PACKAGE}/migrations/{LEVEL + 2:04d}_index_drill.sql",
            "",
            "-- no-transaction\n-- {token}\nCREATE INDEX CONCURRENTLY artifacts_drill ON artifacts (drill);\n",
        ),
    ],
}


def change(checkout: Path, name: str) -> None:
    """Make the changes of a variant in a checkout.

    :raises ValueError: when the sources do not contain once what the variant replaces.
    """
    for file, old, new in VARIANTS[name]:
        path = checkout / file
        text = path.read_text() if path.exists() else ""
        if old and text.count(old) != 1:
            raise ValueError(f"{file} contains {old!r} {text.count(old)} times: mend the variant {name} in {__file__}")
        changed = new.replace("{token}", secrets.token_hex(6))
        path.write_text(text.replace(old, changed) if old else text + changed)


def copy_of_sources(folder: Path) -> None:
    """Copy into a folder what a release is built from."""
    shutil.copytree(REPOSITORY / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / "requirements").mkdir()
    shutil.copy(REPOSITORY / "requirements/app.txt", folder / "requirements")


def publish(fleet: Fleet, name: str) -> str:
    """Make and publish a variant; returns its version. Each call makes a new one.

    :raises ValueError: when the sources no longer contain what the variant replaces.
    :raises artefact.ReleaseError: when it cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_of_sources(copy)
        change(copy, name)
        os.environ[KEY_VARIABLE] = (fleet.state / "release.key").read_text()
        signer = Signer.from_environment((fleet.state / "release.pub").read_text().strip())
        store = Store(fleet.state / "releases", signer)
        made = recipe(copy)
        with store.alone():
            return str(store.make(made, f"dev+{made.digest()}")["version"])
