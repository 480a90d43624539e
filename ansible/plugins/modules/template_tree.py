"""Put a set of rendered files in place, all or none. The target side of the action `template_tree`; use that.

One run compares every file, validates what would change, then writes: temporary sibling, fsync, rename. A file
whose change asks for an action (restart, reload ...) is only replaced once the pending marker names that action,
so that a run which is cut off in between is finished by the next one. Nothing else is touched or deleted.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import shlex
import shutil
import stat
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

PENDING = "var/lib/arches/pending"


class TreeError(Exception):
    """What is wrong, with which file, and what to do about it."""


class Entry(t.NamedTuple):
    """One owned path. `content` is None for a directory and for a file that must be absent."""

    path: str
    content: bytes | None
    owner: str
    group: str
    mode: int
    on_change: list[str]
    validate: str | None
    secret: bool
    seed: bool
    kind: str  # file | directory | absent


class Change(t.NamedTuple):
    """One path that is not as it should be. `uid` and `gid` are -1 where check mode met an unknown name."""

    entry: Entry
    target: str
    uid: int
    gid: int
    before: bytes | None  # None: nothing there
    before_attributes: str
    rewrite: bool  # False: only owner, group or mode differ


def entry_from(raw: dict[str, t.Any]) -> Entry:
    """The entry that the action sent as plain data."""
    return Entry(
        path=raw["path"],
        content=raw["content"].encode() if raw["kind"] == "file" else None,
        owner=raw["owner"],
        group=raw["group"],
        mode=int(raw["mode"], 8),
        on_change=raw["on_change"],
        validate=raw["validate"],
        secret=raw["secret"],
        seed=raw["seed"],
        kind=raw["kind"],
    )


def account_id(entry: Entry, name: str, kind: str, check: bool) -> int:
    """Numeric id of a user or group; -1 in check mode for one that a package will bring.

    Raises TreeError when it does not exist.
    """
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        if check:
            return -1
        raise TreeError(
            f"/{entry.path}: {kind} {name!r} does not exist on this host. "
            f"Install the package that brings it before this task, or correct the name."
        ) from None


def attributes(owner: str, group: str, mode: int) -> str:
    """Owner, group and mode as one line of a diff."""
    return f"{owner}:{group} {mode:04o}"


def current_attributes(status: os.stat_result) -> str:
    """Owner, group and mode that a path has now; numbers where a name is unknown."""
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return attributes(owner, group, stat.S_IMODE(status.st_mode))


def compare(entry: Entry, root: str, check: bool) -> Change | None:
    """What has to change for this entry, or None. Raises TreeError when it can not be made so."""
    target = os.path.join(root, entry.path)
    try:
        status = os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        status = None
    if entry.kind == "absent" and status is None:
        return None
    if entry.seed and status is not None:
        return None
    is_directory = status is not None and stat.S_ISDIR(status.st_mode)
    if status is not None and is_directory != (entry.kind == "directory"):
        found, wanted = ("a directory", "a file") if is_directory else ("a file", "a directory")
        raise TreeError(f"/{entry.path} is {found} on this host but should be {wanted}. Move it away by hand.")

    before, uid, gid, rewrite = None, -1, -1, True
    if status is not None and stat.S_ISREG(status.st_mode):
        with open(target, "rb") as file:
            before = file.read()
    elif status is not None and not is_directory:
        before = b""  # a link or a special file: replaced by the file, never followed
    if entry.kind != "absent":
        uid = account_id(entry, entry.owner, "user", check)
        gid = account_id(entry, entry.group, "group", check)
        regular = status is not None and (stat.S_ISREG(status.st_mode) or is_directory)
        if status is not None and regular and before == entry.content:
            rewrite = False
            if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (uid, gid, entry.mode):
                return None
    return Change(entry, target, uid, gid, before, current_attributes(status) if status else "", rewrite)


def validate(change: Change, run: t.Callable[[list[str]], tuple[int, str, str]], check: bool) -> None:
    """Ask the product's own checker about the new content, in a private copy that keeps the file's name.

    In check mode a checker that is not installed yet is passed over. Raises TreeError when it says no.
    """
    entry = change.entry
    if entry.validate is None or entry.content is None or not change.rewrite:
        return
    words = shlex.split(entry.validate)
    if shutil.which(words[0]) is None:
        if check:
            return
        raise TreeError(f"/{entry.path}: its validator {words[0]!r} is not on this host. Install it before this task.")
    with tempfile.TemporaryDirectory(prefix="arches-validate-") as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - a checker may drop its rights; the file's own mode protects it
        copy = os.path.join(folder, os.path.basename(entry.path))
        write_copy(copy, change)
        code, out, err = run([word.replace("%s", copy) for word in words])
    if code != 0:
        said = "(not shown: the file is secret)" if entry.secret else (err.strip() or out.strip())
        raise TreeError(f"/{entry.path}: {words[0]} refused the new content, nothing was changed: {said}")


def write_copy(path: str, change: Change) -> None:
    """Write the new content to a path that must not exist, with its final owner and mode, down to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(change.entry.content or b"")
        file.flush()
        os.fchown(descriptor, change.uid, change.gid)
        os.fchmod(descriptor, change.entry.mode)
        os.fsync(descriptor)


def sibling(target: str) -> str:
    """The temporary name next to a file; always the same, so that a killed run's leftover is found again."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.arches-new")


def make_parents(path: str, created: list[str]) -> None:
    """Create the missing folders above a path (0755) and note them."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        make_parents(folder, created)
        os.mkdir(folder)
        os.chmod(folder, 0o755)  # noqa: S103 - /etc and the like are for everybody
        created.append(folder)


def sync_folder(folder: str) -> None:
    """Make renames and removals inside a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_pending(marker: str) -> list[str]:
    """Actions that an earlier run left undone. Raises TreeError when the marker is not ours."""
    try:
        with open(marker, encoding="utf-8") as file:
            actions = json.load(file)
    except FileNotFoundError:
        return []
    except ValueError:
        actions = None
    if not isinstance(actions, list) or not all(isinstance(action, str) for action in actions):
        raise TreeError(f"{marker} is not a JSON list of actions. Delete it and restart the service it is named after.")
    return actions


def write_pending(marker: str, actions: list[str]) -> None:
    """Note the actions that are owed from now on, down to the disk, before any file changes."""
    make_parents(marker, [])
    temporary = sibling(marker)
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(actions, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, marker)
    sync_folder(os.path.dirname(marker))


def stage(changes: list[Change]) -> None:
    """Put everything on the disk beside its place; on any failure take it all back and raise TreeError."""
    created: list[str] = []
    staged: list[str] = []
    path = ""
    try:
        for change in changes:
            path = change.entry.path
            if change.entry.kind == "directory" and change.rewrite:
                make_parents(change.target, created)
                os.mkdir(change.target)
                created.append(change.target)
                set_attributes(change)
            elif change.entry.kind == "file" and change.rewrite:
                make_parents(change.target, created)
                staged.append(sibling(change.target))
                write_copy(staged[-1], change)
    except OSError as error:
        for leftover in staged:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
        for folder in reversed(created):
            os.rmdir(folder)
        raise TreeError(f"/{path}: {error.strerror}. Nothing was changed.") from error


def set_attributes(change: Change) -> None:
    """Give a path its owner, group and mode."""
    os.chown(change.target, change.uid, change.gid)
    os.chmod(change.target, change.entry.mode)


def put_in_place(changes: list[Change]) -> None:
    """Rename, remove and correct; every step is atomic by itself."""
    folders: set[str] = set()
    for change in changes:
        if change.entry.kind == "absent":
            os.unlink(change.target)
        elif not change.rewrite:
            set_attributes(change)
        elif change.entry.kind == "file":
            os.replace(sibling(change.target), change.target)
        folders.add(os.path.dirname(change.target))
    for folder in sorted(folders):
        sync_folder(folder)


def describe(change: Change) -> list[dict[str, str]]:
    """The change as Ansible's diff entries: content and attributes; a secret's content is never part of it."""
    entry = change.entry
    parts = []
    header = {"before_header": f"/{entry.path}", "after_header": f"/{entry.path}"}
    if entry.secret and change.rewrite:
        parts.append({"prepared": f"/{entry.path}: content differs (secret, not shown)\n"})
    elif entry.kind != "directory" and change.rewrite:
        before, after = (part.decode(errors="replace") for part in (change.before or b"", entry.content or b""))
        parts.append({**header, "before": before, "after": after})
    wanted = "" if entry.kind == "absent" else attributes(entry.owner, entry.group, entry.mode)
    if change.before_attributes != wanted:
        had, gets = (part and f"{part}\n" for part in (change.before_attributes, wanted))
        parts.append({**header, "before": had, "after": gets})
    return parts


def owe(root: str, owed: dict[str, list[str]]) -> None:
    """Add actions to what each owner owes; a marker that says so already is left alone."""
    for owner, actions in owed.items():
        marker = os.path.join(root, PENDING, owner)
        before = read_pending(marker)
        if not set(actions) <= set(before):
            write_pending(marker, sorted({*before, *actions}))


def apply(
    owner: str,
    entries: list[Entry],
    root: str,
    check: bool,
    run: t.Callable[[list[str]], tuple[int, str, str]],
    others: dict[str, list[str]] | None = None,
) -> dict[str, t.Any]:
    """Make the tree so and return the module's result.

    `others` are actions by owner that any change at all makes owing.
    Raises TreeError, before anything changed where possible.
    """
    pending = read_pending(os.path.join(root, PENDING, owner))
    if not check:
        for entry in entries:  # what a killed run left behind
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(sibling(os.path.join(root, entry.path)))
    changes = [change for entry in entries if (change := compare(entry, root, check))]
    for change in changes:
        validate(change, run, check)
    actions = sorted({*pending, *(action for change in changes for action in change.entry.on_change)})
    if not check and changes:
        stage(changes)
        owe(root, {**(others or {}), owner: actions})
        put_in_place(changes)
    diff = [part for change in changes for part in describe(change)]
    if pending:
        diff.append({"prepared": f"{owner}: still to do from an earlier run: {', '.join(pending)}\n"})
    return {
        "changed": bool(changes or pending),
        "changed_files": [change.entry.path for change in changes],
        "actions": actions,
        "pending": pending,
        "diff": diff,
    }


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "required": True},
            "entries": {"type": "list", "elements": "dict", "required": True},
            "root": {"type": "path", "default": "/"},
            "others": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
        no_log=True,  # contents are not for the host's journal
    )
    owner, root, others = (module.params[name] for name in ("owner", "root", "others"))
    entries = [entry_from(raw) for raw in module.params["entries"]]
    try:
        result = apply(owner, entries, root, module.check_mode, module.run_command, others)
    except TreeError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename}: {error.strerror}. Repeat the run once that is put right; it will finish."
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
