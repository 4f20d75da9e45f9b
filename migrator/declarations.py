"""Reads out of a CREATE TABLE's text what no PRAGMA tells: CHECKs, generated columns, collations.

SQLite keeps the statement as its author typed it (https://www.sqlite.org/schematab.html), so the
text is cut into tokens by SQLite's own lexical rules and scanned for the few clauses needed. A
statement that looks like nothing known yields less, never an error.
"""

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""
    (?P<space>\s+ | --[^\n]* | /\*.*?(?:\*/|\Z))
  | (?P<string>'(?:[^']|'')*')
  | (?P<name>"(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | [^\W\d][\w$]*)
  | (?P<number>\d[\w.]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
CONSTRAINT_WORDS = {"CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"}


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK constraint: its name where it has one, and its expression in SQLite's SQL."""

    name: str | None
    expression: str


@dataclass(frozen=True, slots=True)
class Declarations:
    """The clauses found in one CREATE TABLE; the dictionaries go by lower-case column name.

    ``deferred`` tells of each REFERENCES, in order of appearance, whether it is INITIALLY DEFERRED.
    """

    checks: tuple[Check, ...] = ()
    deferred: tuple[bool, ...] = ()
    generated: dict[str, str] = field(default_factory=dict)
    collations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its text and where it begins and ends in the statement."""

    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The token in upper case, to be compared with keywords."""
        return self.text.upper()


def unquote_name(token: str) -> str:
    """Takes the quotes off an SQLite name.

    >>> unquote_name('"a"'), unquote_name("[b c]"), unquote_name("`d``e`"), unquote_name("f")
    ('a', 'b c', 'd`e', 'f')
    """
    if len(token) >= 2:
        if token[0] in "\"`'" and token[-1] == token[0]:
            return token[1:-1].replace(token[0] * 2, token[0])
        if token[0] == "[" and token[-1] == "]":
            return token[1:-1]
    return token


def read_declarations(statement: str) -> Declarations:
    """Scans a CREATE TABLE statement.

    >>> found = read_declarations("CREATE TABLE t(a TEXT COLLATE NOCASE CHECK (a <> ')'), b AS (a||1))")
    >>> found.checks[0].expression, found.generated, found.collations
    ("a <> ')'", {'b': 'a||1'}, {'a': 'NOCASE'})
    """
    checks: list[Check] = []
    generated: dict[str, str] = {}
    collations: dict[str, str] = {}
    deferred: list[bool] = []
    for definition in _split_definitions(_tokenize(statement)):
        column = None
        if definition[0].word not in CONSTRAINT_WORDS:
            column = unquote_name(definition[0].text).lower()
        name: str | None = None
        position = 0 if column is None else 1
        while position < len(definition):
            token = definition[position]
            follows = definition[position + 1] if position + 1 < len(definition) else None
            if token.text == "(":
                position = _find_close(definition, position)
            elif token.word == "CONSTRAINT" and follows:
                name = unquote_name(follows.text)
                position += 1
            elif token.word == "CHECK" and follows and follows.text == "(":
                close = _find_close(definition, position + 1)
                checks.append(Check(name, _cut(statement, definition, position + 1, close)))
                name, position = None, close
            elif token.word == "AS" and column and follows and follows.text == "(":
                close = _find_close(definition, position + 1)
                generated[column] = _cut(statement, definition, position + 1, close)
                position = close
            elif token.word == "COLLATE" and column and follows:
                collations[column] = unquote_name(follows.text).upper()
                position += 1
            elif token.word == "REFERENCES":
                deferred.append(False)
            elif token.word == "INITIALLY" and follows and deferred:
                deferred[-1] = follows.word == "DEFERRED"
            position += 1
    return Declarations(tuple(checks), tuple(deferred), generated, collations)


def _tokenize(statement: str) -> list[Token]:
    return [
        Token(match.group(), match.start(), match.end())
        for match in TOKEN.finditer(statement)
        if match.lastgroup != "space"
    ]


def _split_definitions(tokens: list[Token]) -> list[list[Token]]:
    """Cuts the parenthesised body into its column definitions and table constraints."""
    start = next((place for place, token in enumerate(tokens) if token.text == "("), None)
    if start is None:
        return []
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens[start + 1 : _find_close(tokens, start)]:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def _find_close(tokens: list[Token], position: int) -> int:
    depth = 0
    for place in range(position, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[place].text, 0)
        if depth == 0:
            return place
    return len(tokens) - 1


def _cut(statement: str, tokens: list[Token], opened: int, closed: int) -> str:
    return statement[tokens[opened].end : tokens[closed].start].strip()


@dataclass(frozen=True, slots=True)
class IndexDeclaration:
    """The parts of a CREATE INDEX as written, without collation and direction, and its WHERE."""

    parts: tuple[str, ...]
    where: str | None


def read_index(statement: str) -> IndexDeclaration:
    """Reads a CREATE INDEX statement.

    >>> read_index("CREATE INDEX i ON t(lower(a) DESC, b COLLATE NOCASE) WHERE c > 0")
    IndexDeclaration(parts=('lower(a)', 'b'), where='c > 0')
    """
    tokens = _tokenize(statement)
    parts: list[str] = []
    for part in _split_definitions(tokens):
        while len(part) > 1 and part[-1].word in ("ASC", "DESC"):
            part.pop()
        if len(part) > 2 and part[-2].word == "COLLATE":
            del part[-2:]
        parts.append(statement[part[0].start : part[-1].end])
    opened = next((place for place, token in enumerate(tokens) if token.text == "("), None)
    if opened is None:
        return IndexDeclaration((), None)
    rest = tokens[_find_close(tokens, opened) + 1 :]
    where = statement[rest[0].end :].strip() if rest and rest[0].word == "WHERE" else None
    return IndexDeclaration(tuple(parts), where)
