"""Nothing in the repository that does not belong there: secrets, machine paths, addresses of package registries."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rules.repository import Repository, Rule, lines_of

# Random strings that are no secrets: checksums and commit ids say what they are on their own line.
PUBLIC = re.compile(r"sha\d*|checksum|digest|hash|uses:|revision|commit|integrity", re.IGNORECASE)
# Made to be public: an environment's CA, and the key of its releases.
LOCKED = (
    "requirements/*.txt", "*/go.sum", "*.onnx", "*.svg", "*.png", "inventories/*/ca.crt", "inventories/*/release.pub",
)  # fmt: skip
TOKEN = r"(?<![\w/.])[A-Za-z0-9+/=_-]{28,}(?![\w/.])"
# Bits per character: words and names stay below, random letters and digits above.
RANDOM = 4.2

# In halves, so that the names do not stand here either.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"), ("deb", "debian", "org"),
        ("security", "debian", "org"), ("snapshot", "debian", "org"), ("archive", "ubuntu", "com"),
        ("proxy", "golang", "org"), ("sum", "golang", "org"), ("crates", "io"), ("rubygems", "org"), ("ghcr", "io"),
        ("docker", "io"), ("quay", "io"), ("huggingface", "co"), ("apt", "postgresql", "org"),
        ("apt", "grafana", "com"), ("galaxy", "ansible", "com"), ("packages", "redis", "io"), ("nginx", "org"),
    )
]  # fmt: skip


def no_secret_is_in_git(repository: Repository) -> Iterator[str]:
    """Keys, tokens of cloud providers, and whatever looks drawn at random."""
    known = (
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{36}|\$ANSIBLE_VAULT|\bAGE-SECRET-KEY-1"
    )
    for file in repository.files:
        if file in repository.match(*LOCKED, "tests/rules/test_content.py"):
            continue
        for number, match in lines_of(repository.text(file), known):
            yield f"{file}:{number}: `{match[0]}...` is a secret; remove it and replace it everywhere"
        for number, line in enumerate(repository.text(file).splitlines(), 1):
            for match in re.finditer(TOKEN, line):
                if not PUBLIC.search(line) and looks_random(match[0]):
                    yield f"{file}:{number}: `{match[0][:6]}...` looks like a secret; a checksum says so on its line"


def looks_random(token: str) -> bool:
    """Whether a long token has letters of both cases and digits, evenly spread (or is one long hexadecimal number)."""
    counts = Counter(token)
    entropy = -sum(n / len(token) * math.log2(n / len(token)) for n in counts.values())
    kinds = sum(bool(re.search(kind, token)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    words = re.fullmatch(r"[A-Za-z]+([-_/=+][A-Za-z0-9]+)+", token)
    return bool(re.fullmatch(r"[0-9a-f]{32,}", token)) or (kinds == 3 and entropy > RANDOM and not words)


def no_registry_is_named(repository: Repository) -> Iterator[str]:
    """Clients and images bring their own addresses."""
    pattern = "|".join(rf"(?<![\w-]){re.escape(name)}" for name in REGISTRIES)
    for file in repository.files:
        for number, match in lines_of(repository.text(file), pattern):
            yield f"{file}:{number}: names the package registry `{match[0]}`; leave that to the client's settings"


def no_machine_is_named(repository: Repository) -> Iterator[str]:
    """Paths of one person's machine mean nothing on another."""
    for file in repository.files:
        for number, match in lines_of(
            repository.text(file), r"(?<![\w.}-])/(?:work|home/(?!ops\b)\w+|root/(?!\.))/?\w*"
        ):
            # The tests of a role make users of their own.
            if file != "tests/rules/test_content.py" and "/molecule/" not in file:
                yield f"{file}:{number}: `{match[0]}` is a path of one machine; derive it from the checkout"


def test_repository_keeps_the_rule(rule: Rule, repository: Repository) -> None:
    found = list(rule(repository))
    assert not found, "\n" + "\n".join(found)


def test_rule_can_fail(rule: Rule, files: dict[str, str], says: str, tree: Any) -> None:
    found = list(rule(tree(files)))
    assert any(says in finding for finding in found), found


BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (no_secret_is_in_git, {"a.yml": "x\nkey: -----BEGIN EC PRIVATE KEY-----"}, "a.yml:2: `-----BEGIN EC"),
    (no_secret_is_in_git, {"a.md": "AGE-SECRET-KEY-1QQQQQQ"}, "a.md:1: `AGE-SECRET"),
    (no_secret_is_in_git, {"a.yml": "password: q7Rk2LmZx09TbVwY4sPd8GhN3jKc6FfA"}, "a.yml:1: `q7Rk2L...` looks like"),
    (no_secret_is_in_git, {"a.env": "token: 9f86d081884c7d659a2feaa0c55ad015"}, "a.env:1: `9f86d0...` looks like"),
    (no_registry_is_named, {"a.md": f"see https://{REGISTRIES[0]}/simple"}, "a.md:1: names the package registry"),
    (no_machine_is_named, {"a.py": f"open('{'/'.join(('', 'work', 'tree', 'a'))}')"}, "a.py:1: `/work/tree`"),
    (no_machine_is_named, {"a.py": "open('/home/anna/a')"}, "a.py:1: `/home/anna"),
]  # fmt: skip
