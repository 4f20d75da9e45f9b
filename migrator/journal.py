"""What a cutover or rollback has done so far, on disk before and after each step.

A process may be killed between any two lines; whoever comes next reads here where it stood.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

JOURNAL_FILE = "journal.json"
STATE_FILE = "state.json"


@dataclass(slots=True)
class Journal:
    """One operation's steps: their order, which have begun, which are done, and what they need to know."""

    path: Path
    operation: str
    run_id: str
    started: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def begin(self, step: str) -> None:
        """Records that a step begins."""
        if step not in self.started:
            self.started.append(step)
        self._save()

    def finish(self, step: str, **facts: Any) -> None:
        """Records that a step is done, and what later steps need to know of it."""
        if step not in self.done:
            self.done.append(step)
        self.facts.update(facts)
        self._save()

    def note(self, **facts: Any) -> None:
        """Records facts in the middle of a step."""
        self.facts.update(facts)
        self._save()

    def close(self) -> None:
        """Ends the operation: the journal is gone."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _save(self) -> None:
        write_json(
            self.path,
            {
                "operation": self.operation,
                "run_id": self.run_id,
                "started": self.started,
                "done": self.done,
                "facts": self.facts,
                "written_at": datetime.now(UTC).isoformat(),
            },
        )


def open_journal(folder: Path, operation: str, run_id: str) -> Journal:
    """Begins an operation's journal."""
    journal = Journal(folder / JOURNAL_FILE, operation, run_id)
    journal.note()
    return journal


def read_journal(folder: Path) -> Journal | None:
    """Reads the journal that a killed operation left; None where there is none."""
    path = folder / JOURNAL_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Journal(path, found["operation"], found["run_id"], found["started"], found["done"], found["facts"])


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all, and not before it is on the disk."""
    partial = path.with_name(path.name + ".partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts a folder's entries on the disk, without which a rename may be lost."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
