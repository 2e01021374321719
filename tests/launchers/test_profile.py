"""Profiles: the examples that come along, their page, and one sentence for everything that a person can get wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launchers.profile import LocalProfile, Resources, SlurmProfile, load_profile
from refbert_dist.config.reference import table
from refbert_dist.pipeline import STAGES

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "slurm" / "profiles").glob("*.yaml"))
Refbert = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_example_is_a_profile_of_slurm(path: Path) -> None:
    profile = load_profile(str(path))
    assert isinstance(profile, SlurmProfile)
    assert all(profile.resources(stage.name).tasks > 0 for stage in STAGES)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_field_of_an_example_sets_something(path: Path) -> None:
    given = yaml.safe_load(path.read_text())
    stages = given.pop("stages", {})
    defaults = SlurmProfile(cluster="slurm").model_dump(mode="json")
    assert [name for name, value in given.items() if name not in ("cluster", "nodes") and value == defaults[name]] == []
    idle = {stage: [name for name, value in own.items() if value == given.get(name)] for stage, own in stages.items()}
    assert not any(idle.values()), idle


def test_the_page_has_every_example_and_the_table_of_all_fields() -> None:
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert all(f"../slurm/profiles/{path.name}" in page for path in PROFILES)
    assert table(SlurmProfile) in page, f"put this table into docs/slurm.md:\n{table(SlurmProfile)}"
    assert list(SlurmProfile.model_fields)[: len(Resources.model_fields)] == list(Resources.model_fields)
    assert len(Resources.model_fields) == 13, "docs/slurm.md says how many fields may stand under stages.NAME"


def test_a_stage_asks_for_what_it_is_given_and_else_for_what_all_ask_for() -> None:
    profile = SlurmProfile(
        cluster="slurm",
        partition="gpu",
        gpus_per_node=4,
        time_min=600,
        stages={"prepare": Resources(partition="cpu", gpus_per_node=0, tasks_per_node=16)},
    )
    prepare, finetune = profile.resources("prepare"), profile.resources("finetune")
    assert (prepare.partition, prepare.gpus_per_node, prepare.tasks, prepare.time_min) == ("cpu", 0, 16, 600)
    assert (finetune.partition, finetune.gpus_per_node, finetune.tasks) == ("gpu", 4, 4)


def test_a_file_may_also_describe_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "here.yaml"
    path.write_text("processes: 3")
    assert load_profile(str(path)) == LocalProfile(processes=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster: slurm\npartiton: main", ("partiton is not a known key", "did you mean 'partition'")),
        ("cluster: slurm\nstages: {prepare: {nodez: 2}}", ("stages.prepare.nodez", "did you mean 'nodes'")),
        ("partition: main", ("cluster is missing", "write cluster: slurm")),
        (
            "cluster: slurm\nsignal_delay_s: 3600",
            ("signal_delay_s is 3600", "time_min is 60", "give the job more time"),
        ),
        (
            "cluster: slurm\nsignal_delay_s: 300\nstages: {evaluate: {time_min: 5}}",
            ("signal_delay_s is 300", "stages.evaluate.time_min is 5"),
        ),
        ("cluster: slurm\nstages: {distil-task: {nodes: 2}}", ("stages.distil-task", "did you mean 'distill-task'")),
        ("cluster: slum", ("cluster is 'slum'", "did you mean 'slurm'")),
        ("cluster: slurm\nnodes: 0", ("nodes is 0", "greater than 0")),
        ("cluster: slurm\npartition: my gpus", ("partition is 'my gpus'",)),
        ("cluster: [slurm", ("is not valid YAML",)),
    ],
)
def test_what_is_wrong_in_a_profile_is_one_sentence(
    refbert: Refbert, tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    code, out, err = refbert("doctor", "--on", path)
    assert (code, out) == (2, "")
    assert err.startswith("refbert: ") and err.count("\n") == 1
    assert [word for word in words if word not in err] == []


def test_a_profile_that_does_not_exist_is_one_sentence(refbert: Refbert) -> None:
    code, _, err = refbert("doctor", "--on", "locl")
    assert code == 2
    assert err.count("\n") == 1 and "did you mean 'local'" in err
