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
        work_dir.mkdir(parents=True, exist_ok=True)
        for leftover in work_dir.glob(f"{client}.*"):
            _remove_unlocked(leftover)
        folder = work_dir / f"{client}.{run_id}"
        folder.mkdir(mode=0o700)
        adopt(work_dir, work_dir.parent)
    except OSError as error:
        raise SnapshotError(
            f"{work_dir} cannot be written: {error.strerror}. BACKUPS_DIR must be a folder that uid {os.geteuid()} may "
            f"write; 'make secrets' prepares it"
        ) from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
        with suppress(OSError):
            work_dir.rmdir()


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            get_logger().info("leftover_removed", folder=str(folder))
        finally:
            os.close(handle)
