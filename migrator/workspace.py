"""A scratch folder for each run, which no killed run leaves behind for long."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from migrator.errors import SnapshotError
from migrator.logs import get_logger
from migrator.owners import adopt


@contextmanager
def hold_folder(work_dir: Path, client: str, run_id: str) -> Iterator[Path]:
    """Gives a run a folder of its own, and removes those that killed runs of the client left.

    A folder in use is locked; the lock goes with its process, so a folder without one is a leftover.
    """
    try:
        with _guard(work_dir.parent):
            work_dir.mkdir(exist_ok=True)
            for leftover in work_dir.glob(f"{client}.*"):
                _remove_unlocked(leftover)
            folder = work_dir / f"{client}.{run_id}"
            folder.mkdir(mode=0o700)
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            adopt(folder, work_dir.parent)
    except OSError as error:
        raise SnapshotError(
            f"{work_dir} cannot be written: {error.strerror}. BACKUPS_DIR must be a folder that uid {os.geteuid()} may "
            f"write; 'make secrets' prepares it"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
        with suppress(OSError), _guard(work_dir.parent):
            work_dir.rmdir()


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Lets one run at a time make and remove folders; another would take one away before it is locked."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            get_logger().info("leftover_removed", folder=str(folder))
        finally:
            os.close(handle)
