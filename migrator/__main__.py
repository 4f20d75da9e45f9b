"""Lets ``python -m migrator`` stand for the console script."""

import gc
import os
import sys

from migrator.cli import main


def run() -> None:
    """Runs the command line and ends the process at once.

    To take the interpreter and its libraries apart would take longer than a small client's migration.
    """
    # Rows are tuples without cycles: to look for some after every few hundred of them is time lost.
    gc.set_threshold(50_000, 20, 50)
    # NumPy would start a thread for matrices, of which there are none, and let it spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


if __name__ == "__main__":
    run()
