"""What a process on a node makes of SLURM's variables, and when a job gives up."""

from typing import Any

import pytest

from launchers.cluster.job import FRUITLESS_STOPS, Place, require_advance
from launchers.cluster.records import Attempt
from refbert_dist.engine.world import RENDEZVOUS_PORTS
from refbert_dist.errors import RefusedError
from refbert_dist.pipeline import stage_named


def variables(**fields: Any) -> dict[str, str]:
    given = {"SLURM_JOB_ID": 77, "SLURM_NTASKS": 4, "SLURM_PROCID": 0, "SLURM_LOCALID": 0, **fields}
    return {name: str(value) for name, value in given.items()}


def places(count: int, group_size: int | None, **fields: Any) -> list[Place]:
    return [
        Place.from_environment(
            group_size, variables(SLURM_NTASKS=count, SLURM_PROCID=number, SLURM_LOCALID=number % 2, **fields)
        )
        for number in range(count)
    ]


def test_the_processes_of_a_job_are_one_world() -> None:
    found = places(4, None)
    assert [(place.world.rank, place.world.size, place.world.local_rank) for place in found] == [
        (0, 4, 0),
        (1, 4, 1),
        (2, 4, 0),
        (3, 4, 1),
    ]
    variables = [place.rendezvous(["a", "b"], 4) for place in found]
    assert {each["MASTER_ADDR"] for each in variables} == {"a"}
    assert len({each["MASTER_PORT"] for each in variables}) == 1
    assert int(variables[0]["MASTER_PORT"]) in RENDEZVOUS_PORTS


def test_another_start_and_another_job_use_other_ports() -> None:
    ports = {
        Place.from_environment(None, variables(SLURM_JOB_ID=job, SLURM_RESTART_COUNT=start)).rendezvous(["a"], 4)[
            "MASTER_PORT"
        ]
        for job in range(1000, 1010)
        for start in range(3)
    }
    assert len(ports) == 30


def test_groups_are_counted_over_all_jobs_of_an_array() -> None:
    found = places(4, 2, SLURM_ARRAY_JOB_ID=70, SLURM_ARRAY_TASK_ID=3, SLURM_ARRAY_TASK_COUNT=5)
    assert [(place.world.group, place.world.groups, place.world.rank) for place in found] == [
        (6, 10, 0),
        (6, 10, 1),
        (7, 10, 0),
        (7, 10, 1),
    ]
    assert [place.world.number for place in found] == [12, 13, 14, 15]
    assert {place.job_id for place in found} == {"70_3"}
    first, second = found[0].rendezvous(["a", "b"], 4), found[2].rendezvous(["a", "b"], 4)
    assert (first["MASTER_ADDR"], second["MASTER_ADDR"]) == ("a", "b")
    assert first["MASTER_PORT"] != second["MASTER_PORT"]


def test_a_world_of_one_meets_nobody() -> None:
    place = places(4, 1)[3]
    assert place.rendezvous(["a", "b"], 4)["MASTER_ADDR"] == "127.0.0.1"


def starts(*pairs: tuple[str, int | None]) -> list[Attempt]:
    return [
        Attempt("7", number, "n1", float(number), advance, exit_code=code)
        for number, (advance, code) in enumerate(pairs)
    ]


def test_a_job_that_crashes_without_getting_further_gives_up() -> None:
    stage = stage_named("distill-general")
    require_advance(stage, starts(("a", None), ("a", None), ("a", None)), restarts=2)
    require_advance(stage, starts(("a", None), ("a", None), ("a", None), ("b", None)), restarts=2)
    with pytest.raises(RefusedError, match="distill-general has crashed 3 times in a row without getting any further"):
        require_advance(stage, starts(("a", None), ("a", None), ("a", None), ("a", None)), restarts=2)
    with pytest.raises(RefusedError, match="has crashed once without"):
        require_advance(stage, starts(("a", None), ("a", None)), restarts=0)


def test_stops_on_purpose_are_no_crashes_but_do_not_go_on_for_ever() -> None:
    stage = stage_named("cache-general")
    stopped = [("a", 75)] * FRUITLESS_STOPS
    require_advance(stage, starts(*stopped, ("a", None)), restarts=0)
    with pytest.raises(RefusedError, match=r"stopped 11 times in a row .* give it more time"):
        require_advance(stage, starts(*stopped, ("a", 75), ("a", None)), restarts=0)
