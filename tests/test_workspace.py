"""Scratch folders of many runs at a time: none takes another's away."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from migrator.errors import SnapshotError
from migrator.workspace import hold_folder


def test_runs_of_one_client_do_not_remove_each_others_folders(tmp_path: Path) -> None:
    work = tmp_path / "backups" / ".work"
    work.parent.mkdir()

    def hold(number: int) -> bool:
        with hold_folder(work, "client_001", f"run{number}") as folder:
            (folder / "snapshot.db").write_bytes(b"x")
            return (folder / "snapshot.db").exists()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(hold, range(3_000)))
    assert not work.exists()


def test_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "client_001.killed"
    leftover.mkdir()
    with hold_folder(tmp_path, "client_001", "run"):
        assert not leftover.exists()


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="BACKUPS_DIR"), hold_folder(tmp_path / "file", "client_001", "run"):
        pass
