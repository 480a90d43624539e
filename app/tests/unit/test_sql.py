"""What the pooler forbids: a statement that changes its result type stays broken in PgBouncer for an hour."""

import re
from pathlib import Path

import pytest

import arches_api

SOURCES = Path(arches_api.__file__).parent
FORBIDDEN = {
    r"select\s+(\w+\.)?\*": "name the columns",
    r"returning\s+(\w+\.)?\*": "name the columns",
    r"\blisten\s+\w+": "no LISTEN through the pooler",
    r"\bset\s+(session\s+)?\w+\s*(=|to)\s": "use set_config(..., true) inside the transaction",
    r"pg_(try_)?advisory_lock\b": "session locks leak to other clients; use pg_advisory_xact_lock",
}


def offences(text: str) -> list[str]:
    """Which rules the text breaks."""
    return [fix for pattern, fix in FORBIDDEN.items() if re.search(pattern, text, re.IGNORECASE)]


@pytest.mark.parametrize("path", sorted((SOURCES / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_survive_the_pooler(path: Path) -> None:
    statements = re.findall(r'"""(.*?)"""|"([A-Z][^"\n]*)"', path.read_text(), re.DOTALL)
    # UPDATE ... SET x = is the one SET that is fine.
    text = "\n".join(re.sub(r"(?is)update\s+\w+\s+set\b", "update", a or b) for a, b in statements)
    assert offences(text) == []


def test_no_sql_outside_the_models() -> None:
    allowed = {"migrate.py"}
    found = [
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if path.parent.name != "models"
        and path.name not in allowed
        and re.search(r"\b(SELECT|INSERT INTO|DELETE FROM|UPDATE \w+ SET)\b", path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "bad",
    ["SELECT * FROM users", "select u.* from users u", "INSERT INTO x VALUES (1) RETURNING *", "LISTEN events",
     "SET statement_timeout = 0", "SELECT pg_advisory_lock(1)"],
)  # fmt: skip
def test_the_rules_can_fail(bad: str) -> None:
    assert offences(bad)
