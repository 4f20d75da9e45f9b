"""On a real terminal: bars for the clients in hand, log lines above them, the table at the end."""

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from bench.bench import write_bookings
from bench.embedded import EmbeddedServer, write_secrets

CLIENTS = ("client_001", "client_002", "client_003")
ROWS = 60_000


def run_in_terminal(command: list[str], environment: dict[str, str]) -> str:
    """Runs a command on a terminal of 160 columns and gives all that it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            break
        if not part:
            break
        parts.append(part)
    assert process.wait() == 0, b"".join(parts)[-2000:]
    os.close(ours)
    return b"".join(parts).decode()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_bars_tell_of_each_client(server: EmbeddedServer, tmp_path: Path, command_line: list[str], jobs: str) -> None:
    write_secrets(tmp_path / "secrets", CLIENTS)
    for client in CLIENTS:
        (tmp_path / "clients" / client).mkdir(parents=True)
        write_bookings(tmp_path / "clients" / client / "bookings.db", ROWS)
        server.run_sql(f"DROP DATABASE IF EXISTS {client}_db")
    server.provision(CLIENTS, tmp_path / "secrets")
    environment = {
        **{n: v for n, v in server.make_environment(tmp_path).items() if n not in ("NO_COLOR", "COLUMNS")},
        "TERM": "xterm-256color",
    }
    output = run_in_terminal([*command_line, "migrate", "--all", "--jobs", jobs], environment)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    for client in CLIENTS:
        assert re.search(rf"{client} +\S* *\d+/60000", text), text[-3000:]
    assert "rows of bookings" in text and re.search(r"[\d,]+ rows/s", text)
    assert re.search(r"all +\S* *3/3", text)
    assert text.count("client_finished") == len(CLIENTS)
    table = text[text.rindex("conflicting") :]
    assert [client for client in CLIENTS if client in table] == list(CLIENTS) and "60,000" in table
