"""What becomes of the missing stages: jobs, arrays, and what waits for what."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment

from launchers.cluster.chain import Link, links
from launchers.profile import Resources, SlurmProfile
from refbert_dist.errors import UserError
from refbert_dist.pipeline import last_targets


def profile(**fields: Any) -> SlurmProfile:
    return SlurmProfile(cluster="slurm", **fields)


def chain(root: Path, *overrides: str, live: tuple[str, ...] = (), **fields: Any) -> dict[str, Link]:
    exp = tiny_experiment(root, *overrides)
    return {link.stage.name: link for link in links(exp, profile(**fields), ["export"], live)}


def test_every_stage_waits_for_what_it_needs_and_one_trains_at_a_time(tmp_path: Path) -> None:
    waits = {name: link.after for name, link in chain(tmp_path).items()}
    assert waits == {
        "prepare": (),
        "retrieve": ("prepare",),
        "cache-general": ("prepare",),
        "distill-general": ("retrieve", "cache-general"),
        "finetune": ("distill-general",),
        "cache-task": ("finetune",),
        "distill-task": ("cache-task",),
        "evaluate": ("distill-task",),
        "export": ("evaluate",),
    }


def test_a_stage_that_the_experiment_lacks_is_looked_through(tmp_path: Path) -> None:
    waits = {name: link.after for name, link in chain(tmp_path, "corpus=null").items()}
    assert waits["distill-task"] == ("retrieve", "cache-task")
    assert waits["export"] == ("evaluate",)
    online = chain(tmp_path, "distill.targets=online", "references.states=online")
    assert online["distill-general"].after == ("retrieve",)


def test_copies_are_made_before_all_that_reads_them(tmp_path: Path) -> None:
    settings = ("corpus=null", "task.augment={candidates: glove, glove: vectors.txt}")
    found = chain(tmp_path, *settings, nodes=3)
    assert found["augment"].after == ("prepare",) and found["augment"].elements == 3
    assert found["retrieve"].after == ("augment",)
    assert set(found["cache-task"].after) == {"augment", "finetune"}
    online = chain(tmp_path, *settings, "distill.targets=online", "references.count=0")
    assert set(online["distill-task"].after) == {"augment", "finetune"}


def test_stages_under_way_are_waited_for_and_not_submitted_again(tmp_path: Path) -> None:
    found = chain(tmp_path, live=("prepare", "cache-general"))
    assert "prepare" not in found and "cache-general" not in found
    assert found["retrieve"].after == ("prepare",)
    assert found["distill-general"].after == ("retrieve", "cache-general")


def test_worlds_span_nodes_groups_are_arrays_and_single_processes_take_one_gpu(tmp_path: Path) -> None:
    found = chain(tmp_path, nodes=3, gpus_per_node=4, cpus_per_task=8)
    shapes = {name: (link.elements, link.nodes, link.tasks) for name, link in found.items()}
    assert shapes["distill-general"] == shapes["finetune"] == (1, 3, 4)
    assert shapes["prepare"] == shapes["retrieve"] == shapes["cache-general"] == (3, 1, 4)
    assert shapes["evaluate"] == shapes["export"] == (1, 1, 1)
    assert found["evaluate"].resources.gpus_per_node == 1
    assert found["cache-general"].processes == 12


def test_a_search_has_one_process_on_each_node_with_all_that_others_would_share(tmp_path: Path) -> None:
    exp = tiny_experiment(tmp_path, "systems=[refbert]")
    exp.run.dir.mkdir()
    (exp.run.dir / "search.yaml").touch()
    asked = profile(nodes=3, gpus_per_node=4, cpus_per_task=8)
    found = {link.stage.name: link for link in links(exp, asked, last_targets(exp), ())}
    assert list(found) == ["prepare", "retrieve", "cache-general", "finetune", "cache-task", "search"]
    search = found["search"]
    assert (search.elements, search.nodes, search.tasks) == (1, 3, 1)
    assert (search.resources.cpus_per_task, search.resources.gpus_per_node) == (32, 4)
    assert search.after == ("retrieve", "cache-general", "cache-task")


def test_stages_may_ask_for_other_things(tmp_path: Path) -> None:
    found = chain(
        tmp_path,
        partition="gpu",
        nodes=2,
        gpus_per_node=4,
        stages={"prepare": Resources(partition="cpu", nodes=5, gpus_per_node=0, cpus_per_task=2)},
    )
    asked = found["prepare"].resources
    assert (asked.partition, asked.cpus_per_task, found["prepare"].elements, found["prepare"].tasks) == ("cpu", 2, 5, 1)
    assert found["retrieve"].resources.partition == "gpu"


def test_a_group_may_need_several_nodes(tmp_path: Path) -> None:
    found = chain(tmp_path, "cache.group_processes=4", nodes=7, tasks_per_node=2)["cache-general"]
    assert (found.elements, found.nodes, found.tasks) == (3, 2, 2)


@pytest.mark.parametrize(("size", "nodes", "tasks"), [(8, 2, 2), (3, 4, 2)])
def test_groups_that_do_not_fit_are_refused(tmp_path: Path, size: int, nodes: int, tasks: int) -> None:
    with pytest.raises(UserError, match=rf"cache.group_processes is {size}, but .* {nodes} node\(s\) of {tasks} proc"):
        chain(tmp_path, f"cache.group_processes={size}", nodes=nodes, tasks_per_node=tasks)
