"""The journal of every host of every environment is large enough to be the buffer of the log collector."""

from pathlib import Path

import pytest
from ansible.template import Templar

from rules.environments import ENVIRONMENTS, Environment, copy_inventories, load_plugin

# What a host is assumed to write, and how long Loki may be away.
LINES_PER_SECOND = 300
OUTAGE_S = 3600


@pytest.fixture(scope="module")
def inventories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of all inventories."""
    return copy_inventories(tmp_path_factory.mktemp("journal"))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_journal_holds_an_hour_of_lines(name: str, inventories: Path) -> None:
    environment = Environment(inventories / name)
    line_bytes = load_plugin("filter", "arches").JOURNAL_LINE_BYTES
    for host in environment.hosts("all"):
        variables = environment.variables("base", host, {})
        templar = Templar(loader=environment.loader, variables=variables)
        limit = str(templar.template(variables["base_journal_max_use"]))
        assert limit.endswith("M"), limit
        # journald deletes whole files, an eighth of the limit each.
        certain = int(limit.removesuffix("M")) * 1024**2 * 7 / 8
        assert certain >= LINES_PER_SECOND * OUTAGE_S * line_bytes, f"{host}: {limit}"
        allowed = int(templar.template(variables["base_journal_lines_per_second"]))
        assert allowed >= 2 * LINES_PER_SECOND, f"{host}: journald would drop lines of a busy unit"
