"""What a person reads is true: links resolve, commands exist, verbs are explained, workflows are pinned."""

import re
from collections.abc import Iterator
from typing import Any

from rules.repository import Repository, Rule, lines_of

DOCUMENTS = ("*.md",)
# `name: prerequisites` of a target; an assignment (`:=`) is none.
TARGET = r"^([a-z][\w-]*):(?!=)(.*)$"


def links_resolve(repository: Repository) -> Iterator[str]:
    """Every relative link leads to a file, every anchor to a heading."""
    for file in repository.match(*DOCUMENTS):
        for number, match in lines_of(without_code(repository.text(file)), r"\[[^\]]*\]\(([^)\s]+)\)"):
            target, _, anchor = match[1].partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = (repository.root / file).parent / target if target else repository.root / file
            if not path.exists():
                yield f"{file}:{number}: the link `{match[1]}` leads nowhere"
            elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
                yield f"{file}:{number}: the link `{match[1]}` names a heading that does not exist"


def without_code(text: str) -> str:
    """Text with fenced code blanked, lines kept."""
    return re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Anchors that headings get."""
    headings = re.findall(r"^#+\s+(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands_exist(repository: Repository) -> Iterator[str]:
    """`make x` and `ansible-playbook x` of a document work."""
    verbs = {match[1] for _, match in lines_of(text_of(repository, "Makefile"), TARGET)}
    for file in repository.match(*DOCUMENTS, "*.yml", ".ci/run"):
        text = repository.text(file)
        for number, match in lines_of(text, r"(?:`|^|run: )make ((?:[a-z][\w-]*\b(?!=) ?)+)"):
            for verb in match[1].split() if file.endswith((".md", "run")) or "run: " in match[0] else []:
                if verb not in verbs:
                    yield f"{file}:{number}: `make {verb}` does not exist"
        for number, match in lines_of(text, r"(?:`|^)ansible-playbook (?:-i \S+ )?([\w./-]+\.yml)"):
            if match[1] not in repository.files:
                yield f"{file}:{number}: the playbook `{match[1]}` does not exist"


def text_of(repository: Repository, file: str) -> str:
    """Content of a file, or nothing."""
    return repository.text(file) if file in repository.files else ""


def named_paths_exist(repository: Repository) -> Iterator[str]:
    """A path in backticks that begins with a folder of ours is there."""
    tops = {name.split("/")[0] for name in repository.files if "/" in name}
    for file in repository.match("README.md", "docs/*.md"):
        for number, match in lines_of(without_code(repository.text(file)), r"`([\w.-]+(?:/[\w.-]+)+/?)`"):
            if match[1].split("/")[0] in tops and not (repository.root / match[1]).exists():
                yield f"{file}:{number}: `{match[1]}` does not exist"


def verbs_are_explained(repository: Repository) -> Iterator[str]:
    """`make help` shows every verb."""
    for number, match in lines_of(text_of(repository, "Makefile"), TARGET):
        if not re.search(r"##\s+\S", match[2]):
            yield f"Makefile:{number}: the verb `{match[1]}` has no `## help`"


def workflows_are_pinned(repository: Repository) -> Iterator[str]:
    """An action is a commit, a workflow has few rights, its runner is a setting, its jobs end."""
    for file in repository.match(".github/workflows/*.yml"):
        for number, match in lines_of(repository.text(file), r"uses:\s*(\S+)"):
            if not match[1].startswith("./") and not re.search(r"@[0-9a-f]{40}$", match[1]):
                yield f"{file}:{number}: `{match[1]}` is not pinned; write the commit's full id, the version as comment"
        data = repository.data(file)
        if "permissions" not in data:
            yield f"{file}: no `permissions`; write `permissions: {{contents: read}}`"
        # YAML reads `on` as true. Who is called runs in the caller's turn.
        called = list(data.get(True, data.get("on")) or {}) == ["workflow_call"]
        if not called and (data.get("concurrency") or {}).get("cancel-in-progress") is not False:
            yield f"{file}: `concurrency` must say `cancel-in-progress: false`: a run that is cut off proves nothing"
        for name, job in (data.get("jobs") or {}).items():
            if "uses" in job:
                continue
            if "vars." not in str(job.get("runs-on")):
                yield f"{file}: job {name}: `runs-on` must come from a variable, with a default"
            if "timeout-minutes" not in job:
                yield f"{file}: job {name}: no `timeout-minutes`"


def test_repository_keeps_the_rule(rule: Rule, repository: Repository) -> None:
    found = list(rule(repository))
    assert not found, "\n" + "\n".join(found)


def test_rule_can_fail(rule: Rule, files: dict[str, str], says: str, tree: Any) -> None:
    found = list(rule(tree(files)))
    assert any(says in finding for finding in found), found


WORKFLOW = """
permissions: {contents: read}
concurrency: {group: a, cancel-in-progress: false}
jobs: {a: {runs-on: "${{ vars.RUNNER }}", timeout-minutes: 5, steps: [{uses: USES}]}}
"""

BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (links_resolve, {"docs/a.md": "\n[b](b.md)"}, "docs/a.md:2: the link `b.md`"),
    (links_resolve, {"docs/a.md": "[b](#c)\n# B"}, "names a heading"),
    (commands_exist, {"Makefile": "up: ## Up", "README.md": "`make pu`"}, "`make pu` does not exist"),
    (commands_exist, {"README.md": "`ansible-playbook sit.yml -i x`"}, "the playbook `sit.yml`"),
    (commands_exist, {"Makefile": "up: ## Up", ".github/workflows/a.yml": "- run: make pu"}, "`make pu`"),
    (named_paths_exist, {"docs/a.md": "`docs/b.md`"}, "docs/a.md:1: `docs/b.md` does not exist"),
    (verbs_are_explained, {"Makefile": "up: down\n\ttrue"}, "Makefile:1: the verb `up`"),
    (workflows_are_pinned, {".github/workflows/a.yml": WORKFLOW}, "is not pinned"),
    (workflows_are_pinned, {".github/workflows/a.yml": WORKFLOW.replace("perm", "Perm")}, "no `permissions`"),
    (workflows_are_pinned, {".github/workflows/a.yml": WORKFLOW.replace("false", "true")}, "cancel-in-progress"),
    (workflows_are_pinned, {".github/workflows/a.yml": WORKFLOW.replace("vars.", "")}, "must come from a variable"),
    (workflows_are_pinned, {".github/workflows/a.yml": WORKFLOW.replace("timeout-minutes", "t")}, "no `timeout-min"),
]  # fmt: skip
