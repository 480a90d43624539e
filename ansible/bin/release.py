#!/usr/bin/env python3
"""Build, sign and publish the API's release.

    release.py tree --into FOLDER --public-key KEY               of the working tree, unless it is there
    release.py tag v1.4.0 --into FOLDER --public-key KEY         of a merged, clean tag
    release.py new-key FILE                                      a key to sign with

ARCHES_RELEASE_KEY holds the secret key. Prints one JSON object: the release's record (artefact/store.py).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from artefact import ReleaseError
from artefact.build import Recipe
from artefact.signing import Signer, new_key
from artefact.store import Store, sentence
from artefact.tag import commit_of, export

REPOSITORY = Path(__file__).resolve().parents[2]


def recipe(repository: Path) -> Recipe:
    """The API's recipe in a checkout."""
    return Recipe("api", repository / "app", repository / "requirements" / "app.txt")


def tree(store: Store, repository: Path) -> dict[str, Any]:
    """The release of a working tree. Raises ReleaseError."""
    return store.newest(recipe(repository), "dev")


def tag(store: Store, repository: Path, version: str, *, older: bool) -> dict[str, Any]:
    """The release of a tag, built anew and compared with what is published. Raises ReleaseError."""
    commit = commit_of(repository, version, older=older)
    with store.alone(), tempfile.TemporaryDirectory() as folder:
        export(repository, commit, Path(folder))
        return store.make(recipe(Path(folder)), version, commit)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("tree", "tag"):
        command = commands.add_parser(name)
        command.add_argument("--into", type=Path, required=True, help="folder of the published releases")
        command.add_argument("--public-key", required=True, help="key that the fleet trusts")
        if name == "tag":
            command.add_argument("version", help="a tag of this checkout, e.g. v1.4.0")
            command.add_argument("--older", action="store_true", help="a newer tag may exist")
    commands.add_parser("new-key").add_argument("file", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "new-key":
            print(f"{options.file}: {'made' if new_key(options.file) else 'is there already, and was kept'}")
            return 0
        store = Store(options.into, Signer.from_environment(options.public_key))
        if options.command == "tag":
            print(json.dumps(tag(store, REPOSITORY, options.version, older=options.older)))
        else:
            print(json.dumps(tree(store, REPOSITORY)))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(sentence(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
