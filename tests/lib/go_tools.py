"""Programs written in Go that tests use, pinned in tests/workflows/tools and built once."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from lib.fleet import REPOSITORY

SOURCES = REPOSITORY / "tests" / "workflows" / "tools"
MAINS = {"act": "github.com/nektos/act", "actionlint": "github.com/rhysd/actionlint/cmd/actionlint"}


def program(name: str) -> Path:
    """Path of a program.

    :raises RuntimeError: when it cannot be built: without Go, or without what it is made of.
    """
    cache = Path(os.environ.get("ARCHES_CACHE", "/var/cache/arches"))
    if not os.access(next(path for path in (cache, *cache.parents) if path.exists()), os.W_OK):
        cache = Path.home() / ".cache" / "arches"
    digest = hashlib.sha256((SOURCES / "go.sum").read_bytes()).hexdigest()[:16]
    path = cache / "tools" / f"go-{digest}" / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        fresh = Path(scratch, name)
        try:
            done = subprocess.run(
                ["go", "build", "-trimpath", "-o", fresh, MAINS[name]],
                cwd=SOURCES, capture_output=True, text=True, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise RuntimeError(f"{name}: Go is not installed (packages/build.py says which version)") from None
        if done.returncode:
            raise RuntimeError(f"{name} could not be built: {done.stderr.strip()[-500:]}")
        fresh.replace(path)
    return path
