"""Several clients at a time: the same outcome, and an end on a signal that loses nothing."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_fleet

CLIENTS = 8


@pytest.fixture
def environment(server: EmbeddedServer, tmp_path: Path, command_line: list[str]) -> dict[str, str]:
    ids = write_fleet(tmp_path / "clients", rows=300, clients=CLIENTS)
    write_secrets(tmp_path / "secrets", ids)
    for client in ids:
        server.run_sql(f"DROP DATABASE IF EXISTS {client}_db")
    server.provision(ids, tmp_path / "secrets")
    return server.make_environment(tmp_path)


def read_events(output: str, name: str) -> list[dict[str, object]]:
    return [event for event in map(json.loads, output.splitlines()) if event["event"] == name]


def test_jobs_do_not_change_the_outcome(environment: dict[str, str], command_line: list[str]) -> None:
    command = [*command_line, "migrate", "--all", "--jobs"]
    first = subprocess.run([*command, "4"], check=False, capture_output=True, text=True, env=environment)
    assert first.returncode == 3, first.stdout[-2000:] + first.stderr
    inserted = {e["client"]: e["rows_inserted"] for e in read_events(first.stdout, "client_finished")}
    assert len(inserted) == CLIENTS
    again = subprocess.run([*command, "1"], check=False, capture_output=True, text=True, env=environment)
    present = {e["client"]: e["rows_already_present"] for e in read_events(again.stdout, "client_finished")}
    assert present == inserted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_what_is_in_hand_and_names_the_rest(
    environment: dict[str, str], command_line: list[str], number: signal.Signals
) -> None:
    command = [*command_line, "migrate", "--all", "--jobs", "2"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert job.stdout is not None
    lines: list[str] = []
    while not lines or '"client_started"' not in lines[-1]:
        lines.append(job.stdout.readline())
    job.send_signal(number)
    output = "".join(lines) + job.communicate(timeout=60)[0]
    assert job.returncode == 1
    (interrupted,) = read_events(output, "fleet_interrupted")
    done = {e["client"] for e in read_events(output, "client_finished")}
    remaining = set(interrupted["remaining"])  # type: ignore[call-overload]
    assert 1 <= len(done) < CLIENTS and len(done) + len(remaining) == CLIENTS and not done & remaining
    rest = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    events = read_events(rest.stdout, "client_finished")
    assert {e["client"] for e in events if e["rows_inserted"]} == remaining
    assert len(events) == CLIENTS


def count_inserting_runs(server: EmbeddedServer, client: str) -> list[int]:
    """Lists how many rows each committed run of a client inserted."""
    text = server.run_sql(
        "SELECT string_agg((SELECT sum((t->>'rows_inserted')::int) FROM jsonb_array_elements(report->'tables') AS t)"
        "::text, ',' ORDER BY finished_at) FROM migrator.runs",
        database=f"{client}_db",
    )
    return [int(number) for number in text.split(",")]


def test_workers_share_a_fleet_while_they_are_killed(
    environment: dict[str, str], command_line: list[str], server: EmbeddedServer, tmp_path: Path
) -> None:
    command = [*command_line, "migrate", "--all", "--jobs", "1"]

    def start(name: str) -> tuple[subprocess.Popen[str], Path]:
        log = tmp_path / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, env=environment, text=True, start_new_session=True)
        return process, log

    workers = [start(f"worker_{number}") for number in range(3)]
    killed = 0
    for process, log in workers[:2]:
        deadline = time.monotonic() + 30
        while '"client_started"' not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    replacement = start("worker_3")
    assert killed == 2
    for process, log in (workers[2], replacement):
        assert process.wait(timeout=120) == 3, log.read_text()[-2000:]
        clients = [
            e["client"] for n in ("client_finished", "client_done_elsewhere") for e in read_events(log.read_text(), n)
        ]
        assert len(clients) == len(set(clients)) == CLIENTS
    for folder in (tmp_path / "clients").iterdir():
        inserted = count_inserting_runs(server, folder.name)
        assert len([count for count in inserted if count]) == 1, (folder.name, inserted)


def test_unchanged_fleet_is_passed_over(environment: dict[str, str], command_line: list[str]) -> None:
    command = [*command_line, "migrate", "--all"]
    subprocess.run(command, check=False, capture_output=True, env=environment)
    again = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    events = read_events(again.stdout, "client_finished")
    assert len([e for e in events if e.get("unchanged_since")]) == CLIENTS
    assert not read_events(again.stdout, "snapshot_taken")
