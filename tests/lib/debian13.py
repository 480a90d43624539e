"""Programs of Debian 13 on a controller that may be something else: what a check says is what the hosts would say."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lib.fleet import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "ansible" / "plugins" / "module_utils"))
from nspawn.image import SUITE, sources


class Unavailable(Exception):
    """A program cannot be had; the message says why in one sentence."""


def program(package: str, name: str) -> Path:
    """Path of a program of a Debian 13 package, unpacked once below the cache and never installed.

    :param package: name of the package, e.g. ``prometheus-alertmanager``.
    :param name: name of the program in /usr/bin.
    :raises Unavailable: when the package cannot be fetched.
    """
    home = Path(os.environ.get("ARCHES_CACHE", "/var/cache/arches"))
    if not os.access(next(path for path in (home, *home.parents) if path.exists()), os.W_OK):
        home = Path.home() / ".cache" / "arches"
    cache = home / "tools" / SUITE
    path = cache / package / "usr" / "bin" / name
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    archives = sources()
    if not archives:
        raise Unavailable(f"{name}: this computer's apt knows no Debian archive to fetch {package} of {SUITE} from.")
    with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=cache) as scratch:
        own = Path(scratch)
        for folder in ("lists/partial", "cache/archives/partial", "parts"):
            (own / folder).mkdir(parents=True)
        (own / "sources.list").write_text("\n".join(archives) + "\n")
        apt = [
            "apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={own}/sources.list",
            "-o", f"Dir::Etc::sourceparts={own}/parts", "-o", f"Dir::State::lists={own}/lists",
            "-o", f"Dir::Cache={own}/cache", "-o", "APT::Sandbox::User=root", "-o", "Dir::State::status=/dev/null",
        ]  # fmt: skip
        for step in (["update"], ["download", package]):
            done = subprocess.run([*apt, *step], cwd=own, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unavailable(f"{name}: {package} of {SUITE} was not fetched: {done.stderr.strip()[-300:]}")
        (archive,) = own.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, own / "tree"], check=True)
        (own / "tree").rename(cache / package)
    return path
