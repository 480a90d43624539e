#!/usr/bin/env python3
"""Build what Debian does not ship into .deb files: packages/build.py [NAME ...] [--without NAME ...]

Each folder beside this file pins one program: a Go module with its sums, a package description (nfpm), a unit. A
package is kept under the hash of its folder, so that nothing new means nothing to do; the first build of all takes
about a quarter of an hour. Prints progress on stderr and the paths of all packages, one per line, on stdout. Exit
status 1 with one sentence when something is missing.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What the youngest of the go.mod files asks for.
GO = (1, 26, 5)
# What a build needs beside what is already in Go's own cache, in GiB: Loki's sources alone are 2.8.
SPACE_GIB = 6
KEEP = 2
# Between two lines of progress, in seconds.
PATIENCE = 30


class BuildError(Exception):
    """A package cannot be built; the message is one sentence that names the fix."""


@dataclass(frozen=True)
class Package:
    """One program.

    :param folder: where its pins lie.
    :param main: Go package to build; empty when the sources are generated from ``manifest.yml``.
    :param tags: Go build tags.
    """

    folder: Path
    main: str = ""
    tags: str = ""

    @property
    def name(self) -> str:
        """Name of the folder, and of the package without its prefix."""
        return self.folder.name

    def digest(self) -> str:
        """Hash of everything that decides the result: its folder, the tools, this recipe."""
        found = hashlib.sha256(f"{self.main} {self.tags} {platform.machine()}\n".encode())
        shared = [HERE / "build.py", HERE / "postinstall.sh", *sorted((HERE / "tools").glob("go.*"))]
        for path in [*shared, *sorted(path for path in self.folder.iterdir() if path.is_file())]:
            found.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return found.hexdigest()[:16]


PACKAGES = [
    Package(HERE / "otel-collector"),
    Package(HERE / "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger"),
    Package(HERE / "loki", "github.com/grafana/loki/v3/cmd/loki", tags="netgo"),
    Package(HERE / "versitygw", "github.com/versity/versitygw/cmd/versitygw"),
]


def cache_directory() -> Path:
    """Where packages are kept: ARCHES_CACHE, /var/cache/arches, or, without the right to write there, in the home."""
    home = Path(os.environ.get("ARCHES_CACHE", "/var/cache/arches"))
    nearest = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        home = Path.home() / ".cache" / "arches"
    return home / "packages"


def go(*arguments: str, folder: Path, output: Path | None = None) -> None:
    """Run Go in a module whose sums are fixed.

    :raises BuildError: with Go's own reason.
    """
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off",
                   "GOTOOLCHAIN": "local"}  # fmt: skip
    out = ["-o", str(output)] if output else []
    command = ["go", *arguments[:1], *out, *arguments[1:]]
    started = time.monotonic()
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                said = process.communicate(timeout=PATIENCE)[1]
                break
            except subprocess.TimeoutExpired:
                say(f"{folder.name}: Go is at work, {time.monotonic() - started:.0f} s so far")
    if process.returncode:
        raise BuildError(explained(folder.name, said))


def explained(name: str, said: str) -> str:
    """One sentence for what Go said."""
    last = next((line for line in reversed(said.strip().splitlines()) if line.strip()), "nothing was said")
    if "SECURITY ERROR" in said or "checksum mismatch" in said:
        module = re.search(r"verifying (\S+?):", said)
        return (
            f"packages/{name}: {module[1] if module else 'a module'} is not the one whose checksum is in go.sum. "
            "Nothing of it was used: find out why it differs before you run `go mod tidy` there."
        )
    if "no space left on device" in said:
        return (
            f"packages/{name}: a disk is full. Free {SPACE_GIB} GiB for Go's caches (`go env GOCACHE GOMODCACHE`) "
            "and ours, and run it again."
        )
    if "missing go.sum entry" in said or "updates to go.mod needed" in said:
        return f"packages/{name}: go.mod and go.sum do not fit each other. Run `go mod tidy` in packages/{name}."
    return f"packages/{name}: Go could not build it: {last}"


def require_go() -> None:
    """Raises BuildError when there is no Go that is new enough."""
    if shutil.which("go") is None:
        raise BuildError(
            f"Go {'.'.join(map(str, GO))} or newer was not found: put it on PATH (the packages are built from source)."
        )
    local = {**os.environ, "GOTOOLCHAIN": "local"}
    said = subprocess.run(
        ["go", "env", "GOVERSION"], capture_output=True, text=True, check=True, env=local
    ).stdout.strip()
    version = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", said)
    if version is None or tuple(int(part or 0) for part in version.groups()) < GO:
        raise BuildError(f"{said} is too old: put Go {'.'.join(map(str, GO))} or newer on PATH.")


def require_space(cache: Path) -> None:
    """Raises BuildError when a build would fill the disk."""
    free = shutil.disk_usage(cache).free / 2**30
    if free < SPACE_GIB:
        raise BuildError(
            f"{cache}: {free:.1f} GiB are free, a build needs {SPACE_GIB}. "
            "Free some, or set ARCHES_CACHE to another disk."
        )


def tool(name: str, main: str, cache: Path) -> Path:
    """A pinned program that builds use, built once."""
    digest = hashlib.sha256((HERE / "tools" / "go.sum").read_bytes()).hexdigest()[:16]
    path = cache / f"tools-{digest}" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_suffix(".new")
        go("build", "-trimpath", main, folder=HERE / "tools", output=fresh)
        fresh.rename(path)
    return path


def compile_program(package: Package, folder: Path, output: Path, cache: Path) -> None:
    """Build the program of a package. Raises BuildError."""
    if not package.main:
        # The builder writes the sources; what they may be built from is pinned beside the manifest.
        builder = tool("builder", "go.opentelemetry.io/collector/cmd/builder", cache)
        generate: list[str | Path] = [builder, "--config", "manifest.yml", "--skip-get-modules", "--skip-compilation"]
        done = subprocess.run(generate, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"packages/{package.name}/manifest.yml: {done.stderr.strip().splitlines()[-1]}")
        for pin in ("go.mod", "go.sum"):
            shutil.copy(folder / pin, folder / "sources" / pin)
        folder /= "sources"
    tags = [f"-tags={package.tags}"] if package.tags else []
    go("build", "-trimpath", *tags, "-ldflags=-s -w", package.main or ".", folder=folder, output=output)


def build(package: Package, cache: Path) -> Path:
    """Build a package aside and put it into the cache when it is whole. Returns the .deb. Raises BuildError."""
    target = cache / f"{package.name}-{package.digest()}"
    with tempfile.TemporaryDirectory(prefix=f".{package.name}-", dir=cache) as scratch:
        folder = Path(scratch) / package.name
        shutil.copytree(package.folder, folder)
        shutil.copy(HERE / "postinstall.sh", scratch)
        binary = re.search(r"src: build/([\w-]+)", (folder / "nfpm.yml").read_text())
        if binary is None:
            raise BuildError(f"packages/{package.name}/nfpm.yml: no content comes from build/; name the program there.")
        (folder / "build").mkdir()
        compile_program(package, folder, folder / "build" / binary[1], cache)
        nfpm = tool("nfpm", "github.com/goreleaser/nfpm/v2/cmd/nfpm", cache)
        result = Path(scratch) / "result"
        result.mkdir()
        # Equal contents give equal bytes: no time of building goes in.
        done = subprocess.run(
            [nfpm, "package", "--config", "nfpm.yml", "--packager", "deb", "--target", result], cwd=folder, text=True,
            capture_output=True, check=False, env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
        )  # fmt: skip
        if done.returncode:
            raise BuildError(
                f"packages/{package.name}/nfpm.yml: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
            )
        result.rename(target)
    return built(package, cache) or target


def built(package: Package, cache: Path) -> Path | None:
    """The package's .deb in the cache, if it is there."""
    return next((cache / f"{package.name}-{package.digest()}").glob("*.deb"), None)


def forget_old(package: Package, cache: Path) -> None:
    """Keep the newest few builds of a package."""
    builds = sorted(cache.glob(f"{package.name}-*"), key=lambda path: path.stat().st_mtime)
    for old in builds[:-KEEP]:
        shutil.rmtree(old)


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[None]:
    """One build at a time: a second run waits, and then finds everything done."""
    with (cache / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is building packages; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """A line of progress."""
    print(f"packages: {text}", file=sys.stderr, flush=True)


def build_all(packages: Sequence[Package], cache: Path) -> list[Path]:
    """Build what is missing. Returns the .deb of each package. Raises BuildError."""
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if built(package, cache) is None]
    if missing:
        with alone(cache):
            missing = [package for package in packages if built(package, cache) is None]
            for cut_off in cache.glob(".*"):
                shutil.rmtree(cut_off)
            if missing:
                require_go()
                require_space(cache)
            for number, package in enumerate(missing, 1):
                say(f"{package.name}: building {number} of {len(missing)} (minutes, the first time)")
                started = time.monotonic()
                build(package, cache)
                forget_old(package, cache)
                say(f"{package.name}: built in {time.monotonic() - started:.0f} s")
    found = [path for package in packages if (path := built(package, cache))]
    for path in found:
        os.utime(path.parent)
    return found


def main() -> int:
    """Command line."""
    names = [package.name for package in PACKAGES]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*names, []], help="only these packages")
    parser.add_argument("--without", action="append", default=[], choices=names, help="a package that is not built")
    options = parser.parse_args()
    wanted = [p for p in PACKAGES if p.name in (options.names or names) and p.name not in options.without]
    try:
        for path in build_all(wanted, cache_directory()):
            print(path)
    except BuildError as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        fix = f" Free {SPACE_GIB} GiB." if error.errno == errno.ENOSPC else ""
        print(f"packages: {error.filename}: {error.strerror}.{fix} What was there is as it was.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
