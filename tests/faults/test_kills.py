"""Kill -9 at many moments: the target holds all of the client or nothing, and the next run ends right."""

import random
import time

from tests.faults.conftest import ROUNDS, Bench

SEED = 20260101


def test_job_killed_at_random_moments(bench: Bench) -> None:
    chance = random.Random(SEED)
    there = 0
    for _ in range(ROUNDS):
        bench.kill_after(chance.uniform(0, bench.seconds * 1.05))
        committed = bench.check_all_or_nothing()
        there += committed
        bench.check_next_run(committed)
        bench.reset()
    print(f"job killed {ROUNDS} times at random moments: {there} times all was there, {ROUNDS - there} times nothing")
    assert there < ROUNDS


def test_job_killed_at_each_stage_boundary(bench: Bench) -> None:
    for number in bench.boundaries:
        bench.kill_at_event(number)
        bench.check_next_run(bench.check_all_or_nothing())
        bench.reset()
    print(f"job killed at {len(bench.boundaries)} stage boundaries")


def test_server_killed_at_random_moments(bench: Bench) -> None:
    chance = random.Random(SEED + 1)
    mended = 0
    for _ in range(ROUNDS):
        job = bench.start()
        time.sleep(chance.uniform(0, bench.seconds * 1.05))
        bench.server.kill()
        bench.server.start()
        outcome = bench.finish(job)
        committed = bench.check_all_or_nothing()
        # The job tries again by itself, so that most runs end right in spite of the fault.
        assert outcome.code in (1, 3), outcome.events[-1]
        assert committed or outcome.code == 1
        mended += bool(outcome.find("client_retried")) and outcome.code == 3
        bench.check_next_run(committed)
        bench.reset()
    print(f"server killed {ROUNDS} times at random moments: the job mended {mended} runs by itself")


def test_server_killed_at_each_stage_boundary(bench: Bench) -> None:
    for number in bench.boundaries:
        job = bench.start()
        lines = bench.read_events(job, number)
        bench.server.kill()
        bench.server.start()
        assert bench.finish(job, lines).code in (1, 3)
        bench.check_next_run(bench.check_all_or_nothing())
        bench.reset()
    print(f"server killed at {len(bench.boundaries)} stage boundaries")
