"""Lets ``python -m migrator`` stand for the console script."""

from migrator.cli import main

if __name__ == "__main__":
    main()
