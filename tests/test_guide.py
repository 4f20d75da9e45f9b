"""The operator's guide says what the tool says: each message, and the same commands in both languages."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ("POSTGRESQL_MIGRATION.md", "POSTGRESQL_MIGRATION.ru.md")
_FOR_PEOPLE = ("Error",)
_NOT_OURS = {
    "AssertionError",
    "ValueError",
    "KeyError",
    "TypeError",
    "WidenError",
    "ComputedError",
    "StatementError",
    "UnusualError",
}


def read_guide(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def list_blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read_guide(name), re.DOTALL)


def list_messages() -> list[str]:
    """The constant parts of every error message that is meant for a person."""
    found = []
    for path in sorted((ROOT / "migrator").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            name = getattr(node.exc.func, "id", "")
            if not name.endswith(_FOR_PEOPLE) or name in _NOT_OURS:
                continue
            parts = [
                c.value for c in ast.walk(node.exc.args[0]) if isinstance(c, ast.Constant) and isinstance(c.value, str)
            ]
            text = " … ".join(part for part in parts if len(part.strip()) > 8)
            if text:
                found.append(text)
    return found


def list_explained(name: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \| (?!.*\|.*\|)", read_guide(name), re.MULTILINE)


@pytest.mark.parametrize("name", GUIDES)
def test_each_message_is_explained(name: str) -> None:
    explained = list_explained(name)
    messages = list_messages()
    assert len(messages) > 60
    assert [text for text in messages if not any(snippet in text for snippet in explained)] == []


@pytest.mark.parametrize("name", GUIDES)
def test_no_message_is_explained_that_is_not_given(name: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "migrator").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    assert [snippet for snippet in list_explained(name) if snippet not in joined] == []


def test_both_languages_have_the_same_commands() -> None:
    for language in ("sh", "sql"):
        assert list_blocks(GUIDES[0], language) == list_blocks(GUIDES[1], language)
    assert len(list_blocks(GUIDES[0], "sh")) >= 10
