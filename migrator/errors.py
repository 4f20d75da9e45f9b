"""The errors of the project: each message says what is wrong, where, and the way out."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller, as the command-line contract has it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REJECTED_ROWS = 3
    VERIFY_FAILED = 4


class MigratorError(Exception):
    """Base of every error that is meant for the person at the keyboard."""

    exit_code = ExitCode.FAILED


class ConfigurationError(MigratorError):
    """A setting, an argument or a client's folder is not as it must be; nothing was begun."""

    exit_code = ExitCode.USAGE


class SnapshotError(MigratorError):
    """The client's SQLite file cannot be copied or is damaged."""


class SourceError(MigratorError):
    """The snapshot holds something that cannot be read."""


class TargetError(MigratorError):
    """The PostgreSQL side refuses: connection, rights, encoding, or the shape of a table."""


class PasswordError(TargetError):
    """The server refused the role's password; trying again cannot help."""


class LockedError(TargetError):
    """Another run holds the client's lock."""


class TransientError(TargetError):
    """The server or the connection went away; the same work may succeed when it is repeated."""


class TooManyRejectedError(MigratorError):
    """More rows were rejected than ``--max-rejected`` allows; nothing was committed."""


class VerificationError(MigratorError):
    """What is in PostgreSQL is not what was in SQLite; nothing was committed."""

    exit_code = ExitCode.VERIFY_FAILED
