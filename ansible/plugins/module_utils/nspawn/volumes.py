"""The volumes of one machine: files of a fixed size with an ext4 file system, on which a disk can be full for real.

Where a file lies says what becomes of it: below the machine's directory it goes with the machine, below the folder
`kept` it stays. The keeper mounts them in a mount namespace of its own, so that they are unmounted, and their loop
devices free, whatever ends the machine. (Were they mounted where everybody sees them, the other machines would get
copies of the mount, and those hold a loop device until the last of them ends.)
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from . import keeper
from .spec import Volume
from .system import NspawnError, run, wait_until

_SUFFIX = ".ext4"
RELEASE_SECONDS = 60  # what was written to a volume is written out first


class Volumes:
    """The volumes of the machine in `directory`; those that outlive it lie in the folder `kept`."""

    def __init__(self, directory: Path, kept: Path) -> None:
        self.machine = directory.name
        self.own = directory / "volumes"
        self.kept = kept

    def file(self, volume: Volume) -> Path:
        """Return where the volume's file belongs."""
        return (self.kept if volume.keep else self.own) / f"{volume.name}{_SUFFIX}"

    def mounts(self, volumes: Iterable[Volume]) -> list[keeper.Mount]:
        """Return what the keeper mounts."""
        return [keeper.Mount(self.file(volume), self._mount_point(volume), volume.path) for volume in volumes]

    def _mount_point(self, volume: Volume) -> Path:
        return self.own / volume.name

    def kept_names(self, wanted: Iterable[Volume] = ()) -> list[str]:
        """Return the names of the volumes that would outlive the machine, if what is `wanted` came true."""
        names = {path.stem for path in self.kept.glob(f"*{_SUFFIX}")}
        for volume in wanted:
            if volume.keep and self._found(volume):
                names.add(volume.name)
            elif not volume.keep:
                names.discard(volume.name)
        return sorted(names)

    def changes(self, wanted: Iterable[Volume]) -> list[str]:
        """Return what `make` would do, in words."""
        words = []
        for volume in wanted:
            found = self._found(volume)
            if found is None:
                words.append(f"volume {volume.name} made")
                continue
            if _megabytes(found) < volume.size_mb:
                words.append(f"volume {volume.name} grown")
            if found != self.file(volume):
                words.append(f"volume {volume.name} {'will outlive' if volume.keep else 'will go with'} the machine")
        return words

    def missing_mb(self, wanted: Iterable[Volume]) -> int:
        """Return how many MiB the files of `wanted` may take that are not theirs yet."""
        sizes = {volume: self._found(volume) for volume in wanted}
        return sum(volume.size_mb - (_megabytes(found) if found else 0) for volume, found in sizes.items())

    def refuse(self, wanted: Iterable[Volume], running: Iterable[Volume] | None) -> None:
        """Raise NspawnError for what cannot be: a smaller volume, or another disk in a machine that runs.

        `running` are the volumes that the running machine has; None when it does not run.
        """
        wanted = list(wanted)
        for volume in wanted:
            found = self._found(volume)
            if found and volume.size_mb < _megabytes(found):
                raise NspawnError(
                    f"The volume {volume.name} of {self.machine} has {_megabytes(found)} MB and shall have "
                    f"{volume.size_mb}: a volume only grows. Write `size_mb: {_megabytes(found)}` or more, or remove "
                    f"its file {found} with all that is on it while the machine is stopped."
                )
        if running is None:
            return
        disks = [{(volume.name, volume.path, volume.size_mb) for volume in volumes} for volumes in (wanted, running)]
        if disks[0] != disks[1]:
            names = ", ".join(sorted({name for name, _, _ in disks[0] ^ disks[1]}))
            raise NspawnError(
                f"{self.machine} runs, and its volumes ({names}) change only while it is off. "
                f"Stop it first: `-e state=stopped --limit {self.machine}`."
            )

    def make(self, wanted: Iterable[Volume]) -> None:
        """Make, grow and check the files, for a machine that does not run; what was cut off half way is done again."""
        for volume in wanted:
            self._mount_point(volume).mkdir(parents=True, exist_ok=True)
            file = self.file(volume)
            self.settle([volume])
            if not file.exists():
                _format(file, volume.size_mb)
            _check(file)
            if _megabytes(file) < volume.size_mb:
                _grow(file, volume.size_mb)

    def settle(self, wanted: Iterable[Volume]) -> None:
        """Put the files of `wanted` where they belong, also below a machine that runs."""
        for volume in wanted:
            file, found = self.file(volume), self._found(volume)
            if found and found != file:
                file.parent.mkdir(parents=True, exist_ok=True)
                found.rename(file)

    def release(self) -> None:
        """Wait until the loop devices of a machine that does not run are free; raises NspawnError when they stay."""
        for folder in (self.own, self.kept):
            for file in folder.glob(f"*{_SUFFIX}"):
                if not wait_until(partial(_is_free, file), RELEASE_SECONDS):
                    raise NspawnError(
                        f"The volume {file} of {self.machine} is still attached to {_device(file)}, by somebody else: "
                        f"unmount it there and run `losetup --detach {_device(file)}`."
                    )

    def delete_kept(self) -> None:
        """Delete the volumes that would have outlived the machine."""
        for file in self.kept.glob("*"):
            file.unlink()
        for folder in (self.kept, self.kept.parent):
            with contextlib.suppress(OSError):  # nothing was kept, or other machines keep something
                folder.rmdir()

    def _found(self, volume: Volume) -> Path | None:
        """Return where the volume's file is; None when there is none."""
        files = (folder / f"{volume.name}{_SUFFIX}" for folder in (self.kept, self.own))
        return next((file for file in files if file.exists()), None)


def _megabytes(file: Path) -> int:
    return file.stat().st_size // 2**20


@contextlib.contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """Give an empty file under another name, which takes the place of `file` when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    yield new
    new.rename(file)


def _format(file: Path, megabytes: int) -> None:
    with _replaced(file) as new:
        os.truncate(new, megabytes * 2**20)
        # Nothing is reserved for root, or root would see another end of the disk than the services.
        run("mkfs.ext4", "-q", "-F", "-m", "0", new)


def _grow(file: Path, megabytes: int) -> None:
    """Grow a copy. (A file system that is mounted could grow only by a right that containers lack.)"""
    with _replaced(file) as new:
        run("cp", "--sparse=always", file, new)
        os.truncate(new, megabytes * 2**20)
        _check(new, "-f")
        run("resize2fs", new)


def _check(file: Path, *options: str) -> None:
    """Check the file system as a host does when it boots, which takes long only after a fault."""
    checked = run("e2fsck", "-p", *options, file, check=False)
    if checked.returncode > 1:  # 1: something was put right
        words = " ".join(checked.stdout.split())[:160]
        raise NspawnError(
            f"The volume {file} is damaged ({words}). Run `e2fsck -f {file}`, or remove that file "
            "with all that is on it."
        )


def _is_free(file: Path) -> bool:
    return not _device(file)


def _device(file: Path) -> str:
    """Return the loop device that the file is attached to; empty when it is not."""
    return run("losetup", "--associated", file, "--noheadings", "--output", "NAME").stdout.strip()
