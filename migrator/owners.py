"""Gives what root writes to the owner of the folder it lies in, so that the next job may write there."""

import os
from contextlib import suppress
from pathlib import Path


def adopt(path: Path, root: Path) -> None:
    """Makes ``path``, all within it, and the folders up to ``root`` belong to the owner of ``root``.

    It does nothing for any user but root, and nothing to files that are gone meanwhile.
    """
    if os.geteuid() != 0:
        return
    owner = root.stat()
    places = [path, *(p for p in path.parents if root in p.parents)]
    if path.is_dir():
        places += path.rglob("*")
    for place in places:
        with suppress(FileNotFoundError):
            os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)
