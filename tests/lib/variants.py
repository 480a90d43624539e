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
CHECKOUT = "from .app import create_app\n"

# name: (file, what is replaced, by what)
VARIANTS = {
    "good": (f"{PACKAGE}/dev.py", "", "# {token}\n"),
    "does_not_start": (f"{PACKAGE}/run.py", CHECKOUT, "raise SystemExit('this release does not start: {token}')\n"),
    "errors": (
        f"{PACKAGE}/app.py",
        NOTE,
        NOTE + f"        if {EDGE} and int.from_bytes(__import__('os').urandom(2)) < 0.05 * 2**16:\n"
        "            raise RuntimeError('one request of twenty fails: {token}')\n",
    ),
    "slow": (
        f"{PACKAGE}/app.py",
        NOTE,
        NOTE + f"        if {EDGE}:\n            await asyncio.sleep(0.4)  # {{token}}\n",
    ),
    # What every transaction borrows from the pool stays away.
    "leaks": (
        f"{PACKAGE}/lib/database.py",
        "        await self._opened().release(connection)\n",
        "        pass  # {token}\n",
    ),
}


def change(checkout: Path, name: str) -> None:
    """Make the change of a variant in a checkout.

    :raises ValueError: when the sources no longer contain what the variant replaces.
    """
    file, old, new = VARIANTS[name]
    text = (checkout / file).read_text()
    if old not in text:
        raise ValueError(f"{file} no longer contains {old!r}: mend the variant {name} in {__file__}")
    changed = new.replace("{token}", secrets.token_hex(6))
    (checkout / file).write_text(text.replace(old, changed, 1) if old else text + changed)


def publish(fleet: Fleet, name: str) -> str:
    """Make and publish a variant; returns its version. Each call makes a new one.

    :raises ValueError: when the sources no longer contain what the variant replaces.
    :raises artefact.ReleaseError: when it cannot be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(REPOSITORY / "app", copy / "app", ignore=shutil.ignore_patterns("__pycache__", ".*"))
        (copy / "requirements").mkdir()
        shutil.copy(REPOSITORY / "requirements/app.txt", copy / "requirements")
        change(copy, name)
        os.environ[KEY_VARIABLE] = (fleet.state / "release.key").read_text()
        signer = Signer.from_environment((fleet.state / "release.pub").read_text().strip())
        store = Store(fleet.state / "releases", signer)
        made = recipe(copy)
        with store.alone():
            return str(store.make(made, f"dev+{made.digest()}")["version"])
