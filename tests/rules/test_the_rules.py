"""No rule is forgotten: every one runs on the repository, and has an example that breaks it."""

import importlib
import inspect

import pytest


@pytest.mark.parametrize("name", ["test_alerts", "test_content", "test_documents", "test_network", "test_roles"])
def test_every_rule_is_run(name: str) -> None:
    module = importlib.import_module(f"rules.{name}")
    rules = {
        function
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if list(inspect.signature(function).parameters) == ["repository"]
        and str(inspect.signature(function).return_annotation).endswith("Iterator[str]")
    }
    assert rules
    assert rules == {rule for rule, _, _ in module.BROKEN}
