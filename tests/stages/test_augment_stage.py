"""The pipeline with augmentation, from text to scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_experiment, tiny_vectors

from launchers.cache import find_damage, mend
from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.cache.contract import scopes
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import Part, TokenSet, tokens_artifact
from refbert_dist.references.guards import GUARDS
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.rundir import stage_record
from refbert_dist.stages.setting import Setting

COPIES = 1
EPOCHS = tuple(
    f"distill.{phase}={{epochs: 1, batch_size: 12, learning_rate: 1e-3}}" for phase in ("intermediate", "prediction")
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    tiny_experiment(folder)
    tiny_vectors(folder / "vectors.txt", folder / "task")
    return folder


def experiment(root: Path, run: str, *overrides: str) -> Experiment:
    augment = f"task.augment={{copies: {COPIES}, glove: {root / 'vectors.txt'}}}"
    return tiny_experiment(root, "corpus=null", augment, *EPOCHS, f"run.dir={root / run}", *overrides)


@pytest.fixture(scope="module")
def done(root: Path) -> Experiment:
    exp = experiment(root, "run", "systems=[refbert,own,shuffled]", "evaluate.latency_repeats=0")
    assert pipeline.run(exp) == [
        *("prepare", "augment", "retrieve", "finetune", "cache-task", "distill-task", "evaluate", "export"),
    ]
    return exp


def token_set(exp: Experiment, part: Part = "augmented") -> TokenSet:
    return TokenSet.open(tokens_artifact(exp, part))


def results(exp: Experiment) -> dict[str, dict[str, float]]:
    return {row["system"]: row for row in read_json(exp.run.dir / "results.json")}


def test_students_see_rows_and_copies_in_both_phases_and_the_teacher_the_rows(done: Experiment) -> None:
    rows, samples = len(token_set(done, "train")), len(token_set(done))
    assert rows < samples <= rows * (1 + COPIES)
    found = results(done)
    for system in done.systems:
        assert found[system]["samples"] == 2 * samples
        assert found[system]["steps"] == 2 * -(-samples // 12)
    assert found["teacher"]["samples"] == rows == 60  # in 4 steps of 16: one epoch of the rows alone
    assert pipeline.run(done) == []


def test_the_stage_says_what_it_made_and_from_what(done: Experiment) -> None:
    result = read_json(stage_record(done.run.dir, "augment"))["result"]
    assert result["rows"] + result["copies"] == result["samples"] == len(token_set(done))
    assert result["candidates"] == ["glove"]
    assert result["remark"].startswith("teacher.model '") and "has no masked-LM head" in result["remark"]


def test_a_copy_never_reads_its_source_or_what_its_source_must_not_read(done: Experiment) -> None:
    samples, rows = token_set(done), token_set(done, "train")
    table = NeighbourTable.open(neighbours_artifact(done, "augmented"))
    assert samples.sources is not None and len(table.ids) == len(samples)
    read = table.ids >= 0
    assert (table.ids != samples.sources[:, None])[read].all()
    assert (rows.documents[table.ids] != samples.documents[:, None])[read].all()
    refused = neighbours_artifact(done, "augmented").manifest()["refused"]
    copies = len(samples) - len(rows)
    # Some words of a row are left in its copy, so that it would be the nearest.
    assert refused["source"] >= copies and refused["self"] == len(rows)
    for part in ("train", "dev"):
        assert set(neighbours_artifact(done, part).manifest()["refused"]) == {*GUARDS, "evaluation_text"}
    # An unchanged row reads what it reads among the rows alone.
    first = np.searchsorted(samples.sources, np.arange(len(rows)))
    assert table.ids[first].tolist() == NeighbourTable.open(neighbours_artifact(done, "train")).ids.tolist()


def test_copies_are_crossfitted_like_rows(done: Experiment, root: Path) -> None:
    exp = experiment(root, "folded", "systems=[refbert,crossfit]", "evaluate.latency_repeats=0")
    pipeline.run(exp, ["evaluate"])
    samples = len(token_set(exp))
    assert results(exp)["crossfit"]["samples"] == results(exp)["refbert"]["samples"] == 2 * samples
    setting = Setting(exp, "task", torch.device("cpu"))
    last = np.arange(samples - 4, samples)
    of_copies, plain = (setting.references(system, "augmented") for system in ("crossfit", "refbert"))
    assert of_copies and plain
    by_folds, by_one = of_copies.of(last), plain.of(last)
    assert torch.equal(by_folds["reference_mask"], by_one["reference_mask"])
    assert not torch.equal(by_folds["reference_values"], by_one["reference_values"])


def test_damage_is_found_and_written_again_byte_for_byte(done: Experiment) -> None:
    for label in ("tokens augmented", "neighbours augmented", "teacher states, augmented"):
        artifact = next(leaf.artifact for leaf in pipeline.leaves(done) if leaf.label == label)
        path = artifact.files("safetensors")[-1]
        before = path.read_bytes()
        path.write_bytes(before[:-1])
        found = find_damage(done, full=False)
        assert [name for name, damage in found.items() if damage] == [label]
        assert [one.outcome for one in mend(done, found)] == ["written again, byte for byte"]
        assert path.read_bytes() == before


def test_without_augmentation_nothing_is_another(done: Experiment, root: Path) -> None:
    plain = experiment(root, "plain", "task.augment=null")
    mine = {leaf.label: (leaf.stage, leaf.artifact.path) for leaf in pipeline.leaves(done)}
    for leaf in pipeline.leaves(plain):
        assert mine.pop(leaf.label) == (leaf.stage, leaf.artifact.path)
    assert {label: stage for label, (stage, _) in mine.items()} == {
        "tokens augmented": "augment",
        "neighbours augmented": "retrieve",
        "teacher states, augmented": "cache-task",
    }
    names = [stage.name for stage in pipeline.missing_stages(plain)]
    assert names == ["distill-task", "evaluate", "export"]


def test_states_are_cached_as_far_as_they_are_read(root: Path) -> None:
    found = {
        overrides: scopes(experiment(root, "any", *overrides))
        for overrides in [
            (),
            ("distill.targets=online",),
            ("references.states=online",),
            ("references.count=0",),
            ("distill.targets=online", "references.count=0"),
        ]
    }
    assert list(found.values()) == [("task", "augmented"), ("task",), ("augmented",), ("augmented",), ()]


def test_a_score_is_learned_from_the_rows_and_online_targets_are_those_of_the_copies(
    root: Path, tmp_path: Path
) -> None:
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    rows = (root / "task" / "train.tsv").read_text().splitlines()[1:]
    for split, part in (("train", rows[:40]), ("dev", rows[40:])):
        pairs = ["\t".join(row.split("\t")[3:]) for row in part]
        lines = [f"{number}\tg\tf\t2012\t{number}\ts\ts\t{pair}\t{number % 6}" for number, pair in enumerate(pairs)]
        (tmp_path / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n")
    exp = experiment(
        root,
        "scores",
        *("task.name=STS-B", f"task.path={tmp_path}", "systems=[refbert]"),
        *("distill.targets=online", "references.states=online"),
    )
    assert "cache-task" not in pipeline.run(exp, ["evaluate"])
    assert results(exp)["refbert"]["samples"] == len(token_set(exp)) + 40
    record = read_json(stage_record(exp.run.dir, "distill-task"))["result"]
    # The teacher sees each sample of the first phase, the references of both, and dev.
    assert record["teacher_samples"] >= len(token_set(exp)) + 20
