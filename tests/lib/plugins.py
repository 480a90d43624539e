"""Loading an Ansible plugin of the project for a unit test."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import ansible.module_utils

PROJECT = Path(__file__).resolve().parents[2]
# As Ansible ships them to a host: ours beside its own.
ansible.module_utils.__path__.append(str(PROJECT / "ansible" / "plugins" / "module_utils"))


def load_plugin(kind: str, name: str) -> ModuleType:
    """Import `ansible/plugins/<kind>/<name>.py` (an action and its module carry the same name)."""
    path = PROJECT / "ansible" / "plugins" / kind / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"arches_{kind}_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_program(file: str) -> ModuleType:
    """Import `roles/<file>`, a program that a role puts on its hosts."""
    path = PROJECT / "roles" / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What is annotated as text is looked up here.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> ModuleType:
    """Import `ansible/bin/<name>`, a command without a suffix."""
    folder = str(PROJECT / "ansible" / "bin")
    if folder not in sys.path:  # where Python looks when it runs a command from there
        sys.path.append(folder)
    loader = importlib.machinery.SourceFileLoader(f"arches_{name}", f"{folder}/{name}")
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
