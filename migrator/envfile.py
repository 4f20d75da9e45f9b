"""Changes a few variables of a ``.env`` file; every other line, comments and order stay."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from migrator.errors import ConfigurationError

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=")


def read_env(path: Path) -> str:
    """Reads the file; one that is missing reads as empty.

    Raises:
        ConfigurationError: it is there but cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def set_variables(text: str, values: Mapping[str, str | None]) -> str:
    r"""Sets variables, each where it stands, new ones at the end; None takes a variable out.

    >>> set_variables("# a bot\nDB_TYPE=sqlite # now\nTOKEN=x\n", {"DB_TYPE": "postgresql", "NEW": "1"})
    '# a bot\nDB_TYPE=postgresql\nTOKEN=x\nNEW=1\n'
    >>> set_variables("A=1\nB=2\n", {"A": None})
    'B=2\n'
    """
    left = dict(values)
    lines: list[str] = []
    for line in text.splitlines():
        match = _ASSIGNMENT.match(line)
        name = match[1] if match else None
        if name not in values:
            lines.append(line)
        elif name in left:
            value = left.pop(name)
            if value is not None:
                lines.append(f"{name}={value}")
    lines += [f"{name}={value}" for name, value in left.items() if value is not None]
    return "\n".join(lines) + "\n" if lines else ""


def restore_variables(text: str, original: str, names: list[str]) -> str:
    r"""Puts some variables back as they stood in the original, and leaves later changes to others.

    >>> restore_variables("DB_TYPE=postgresql\nTOKEN=y\nDATABASE_URL=u\n", "DB_TYPE=sqlite # now\nTOKEN=x\n",
    ...                   ["DB_TYPE", "DATABASE_URL"])
    'DB_TYPE=sqlite # now\nTOKEN=y\n'
    """
    before: dict[str, str] = {}
    for line in original.splitlines():
        match = _ASSIGNMENT.match(line)
        if match and match[1] in names:
            before[match[1]] = line
    lines = []
    for line in text.splitlines():
        match = _ASSIGNMENT.match(line)
        if match is None or match[1] not in names:
            lines.append(line)
        elif match[1] in before:
            lines.append(before.pop(match[1]))
    lines += before.values()
    return "\n".join(lines) + "\n" if lines else ""


def write_env(path: Path, text: str) -> None:
    """Replaces the file whole, with mode 0600 and its owner kept.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    try:
        owner = path.stat() if path.exists() else path.parent.stat()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".env.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o600)
            if os.geteuid() == 0:
                os.chown(name, owner.st_uid, owner.st_gid)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
