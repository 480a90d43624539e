"""Replace secrets of a local environment, which are files on the controller; the former ones stay known for a while.

    - secret_rotation:
        step: draw
        folder: .state/secrets
        secrets: {jwt_secret: jwt}
        alternates: {postgres_app_user: [app, app2]}
    - secret_rotation: {step: forget, folder: .state/secrets}

`secrets` maps what a secret is called while it is a former one to its file. `draw` moves it to `former/<name>`, and the
next who reads it draws a new one; of `alternates` a file takes the next value. Each step can be repeated: what has a
former value is not drawn twice.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from whole_file import write


def draw(folder: Path, secrets: Mapping[str, str], alternates: Mapping[str, Sequence[str]]) -> bool:
    """Every secret has a former value and none of its own; whether that is new. Raises FileNotFoundError."""
    (folder / "former").mkdir(mode=0o700, exist_ok=True)
    changed = False
    for name, values in alternates.items():
        # Named apart: it is no secret that anybody accepts.
        before, file = folder / f".former-{name}", folder / name
        if not before.exists():
            write(before, file.read_text() if file.exists() else values[0], 0o600)
        following = values[(values.index(before.read_text().strip()) + 1) % len(values)]
        if not file.exists() or file.read_text() != following:
            write(file, following, 0o600)
            changed = True
    for name, own in secrets.items():
        former, file = folder / "former" / name, folder / own
        if not former.exists():
            write(former, file.read_text(), 0o600)
        if file.exists() and file.read_text() == former.read_text():
            file.unlink()
            changed = True
    return changed


def forget(folder: Path) -> bool:
    """No former value is left; whether there was any."""
    former = [*folder.glob("former/*"), *folder.glob(".former-*")]
    for file in former:
        file.unlink()
    return bool(former)


class ActionModule(ActionBase):
    """The action behind `secret_rotation`; it runs on the controller and reaches no host."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Move the files."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            argument_spec={
                "step": {"choices": ["draw", "forget"], "required": True},
                "folder": {"type": "path", "required": True},
                # Names of files, nothing that is secret.
                "secrets": {"type": "dict", "default": {}, "no_log": False},
                "alternates": {"type": "dict", "default": {}},
            }
        )
        folder = Path(args["folder"])
        try:
            drawing = args["step"] == "draw"
            result["changed"] = draw(folder, args["secrets"], args["alternates"]) if drawing else forget(folder)
        except OSError as error:
            raise AnsibleActionFail(
                f"{error.filename}: {error.strerror}. Run site.yml first, which draws it."
            ) from error
        return result
