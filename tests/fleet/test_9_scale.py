"""What scaling refuses, and that it then changes nothing. Scaling under load: tests/drills/test_rollout.py."""

import pytest

from lib.fleet import Fleet


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Say how many API hosts there are to be: make scale API=5."),
        (["-e", "api=many"], "api=many is no number of hosts: write one from 3 to 8."),
        (["-e", "api=0"], "At least 3 API hosts are needed, not 0."),
        (["-e", "api=2"], "At least 3 API hosts are needed, not 2."),
        (["-e", "api=9"], "At most 8 API hosts fit on one computer, not 9."),
        (["-e", "remove=api3"], "Local machines come and go by number: make scale API=3."),
    ],
)
def test_a_wrong_number_is_refused_with_the_fix(fleet: Fleet, arguments: list[str], says: str) -> None:
    result = fleet.playbook("ansible/scale.yml", *arguments, check=False)
    assert f"{says} Nothing was changed." in " ".join(result.output.split()), result.output[-3000:]
    assert result.changed == 0 and any(counts["failed"] for counts in result.recap.values())
    assert not (fleet.inventory / "scaled.yml").exists()
