"""What each system reads: controls do what their names say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.artifacts import map_tensors, read_json
from refbert_dist.cache.models import general_student, task_teacher
from refbert_dist.config import SYSTEMS, Experiment
from refbert_dist.data.folds import row_folds
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.inference.new_texts import BankEditor
from refbert_dist.inference.pipeline import RefBertPipeline
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.finetune import FinetuneObjective
from refbert_dist.references.edits import EditedTokens
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.sources import Neighbours
from refbert_dist.stages.scores import answers_path
from refbert_dist.stages.setting import Setting
from refbert_dist.stages.students import load_classifier, model_folder

CPU = torch.device("cpu")
EVERY = f"systems=[refbert,{','.join(name for name in SYSTEMS if name != 'refbert')}]"
SAMPLES = np.arange(12)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("setting")


@pytest.fixture(scope="module")
def done(root: Path) -> Experiment:
    """Every system there is, trained."""
    exp = tiny_experiment(root, EVERY, "references.stages=task")
    pipeline.run(exp)
    return exp


@pytest.fixture(scope="module")
def setting(done: Experiment) -> Setting:
    return Setting(done, "task", CPU)


def read(setting: Setting, system: str, part: str = "train") -> dict[str, torch.Tensor]:
    source = setting.references(system, part)  # type: ignore[arg-type]
    assert source is not None
    return source.of(SAMPLES)


def test_every_system_has_its_row_and_its_answers(done: Experiment) -> None:
    rows = read_json(done.run.dir / "results.json")
    assert {row["system"] for row in rows} == {"teacher", "knn", *SYSTEMS}
    assert {row["steps"] for row in rows if row["system"] in SYSTEMS} == {6 + 4 + 4}
    for row in rows:
        logits = map_tensors(answers_path(done.run.dir, row["system"]))["logits"]
        assert logits.shape == (24, 2)


def test_refbert_reads_its_neighbours(setting: Setting, done: Experiment) -> None:
    table = NeighbourTable.open(neighbours_artifact(done, "train")).prefix(2)[SAMPLES]
    wanted = setting.reference_states().gather(table)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in read(setting, "refbert").items())


@pytest.mark.parametrize("system", ["random", "shuffled", "same"])
def test_other_rows_of_the_pool(setting: Setting, done: Experiment, system: str) -> None:
    source = setting.references(system, "train")  # type: ignore[arg-type]
    assert isinstance(source, Neighbours)
    table = NeighbourTable.open(neighbours_artifact(done, "train")).prefix(2)
    present = source.rows >= 0
    assert (source.rows != table)[present].mean() > 0.5
    groups = setting.tokens.documents
    assert (groups[source.rows] != groups[:, None])[present].all(), "nobody reads itself or its document"
    given = read(setting, system)
    assert torch.equal(
        given["reference_values"], setting.reference_states().gather(source.rows[SAMPLES])["reference_values"]
    )


def test_noise(setting: Setting) -> None:
    train, dev, same = (
        read(setting, system, part) for system, part in (("noise", "train"), ("noise", "dev"), ("same", "train"))
    )
    assert torch.equal(train["reference_mask"], same["reference_mask"])
    assert torch.equal(train["reference_values"][0], dev["reference_values"][0]), "at inference as in training"
    assert (train["reference_values"] != same["reference_values"]).all()


def test_zeros(setting: Setting) -> None:
    given = read(setting, "zeros")
    assert given["reference_values"].abs().sum() == 0
    assert torch.equal(given["reference_mask"], read(setting, "refbert")["reference_mask"])


@pytest.mark.parametrize("part", ["train", "dev"])
@pytest.mark.parametrize("edits", [0.0, 0.3])
def test_own_states_are_the_teachers_of_the_input_or_its_copy(
    setting: Setting, done: Experiment, part: str, edits: float
) -> None:
    tokens = TokenSet.open(tokens_artifact(done, part))  # type: ignore[arg-type]
    if edits:
        tokens = EditedTokens(tokens, edits, done.student_seed("task"))
        references = done.references.model_copy(update={"own_edits": edits})
        setting = Setting(done.model_copy(update={"references": references}), "task", CPU)
    given = read(setting, "own", part)
    for sample in (0, 5, 11):
        ids, types = (torch.from_numpy(of(sample).astype(np.int64))[None] for of in (tokens.ids, tokens.types))
        with torch.no_grad():
            (last,) = setting.teacher(ids, torch.ones_like(ids), types, [4])
        length = ids.shape[1]
        assert given["reference_mask"][sample].sum() == length
        torch.testing.assert_close(given["reference_values"][sample, 0, :length], last[0], atol=5e-3, rtol=1e-2)
        assert torch.equal(given["reference_keys"][sample, 0, :length], setting.teacher.embed(ids, types)[0])


@pytest.mark.parametrize("part", ["train", "dev"])
def test_own_texts_are_read_as_the_teacher_reads_them_alone(done: Experiment, part: str) -> None:
    references = done.references.model_copy(update={"own_text": "each"})
    setting = Setting(done.model_copy(update={"references": references}), "task", CPU)
    given = read(setting, "own", part)
    tokenizer = load_tokenizer(done.teacher.model)
    tokens = TokenSet.open(tokens_artifact(done, part))  # type: ignore[arg-type]
    whole = np.flatnonzero(tokens.lengths[SAMPLES] < done.task.max_length)  # type: ignore[union-attr]
    assert len(whole) > 1, "the others are cut"
    for sample in whole.tolist():
        for place, text in enumerate(tokens.texts(sample, sample + 1)[0]):
            alone = tokenizer(text, return_tensors="pt")
            ids, mask = alone["input_ids"], alone["attention_mask"]
            with torch.no_grad():
                (last,) = setting.teacher(ids, mask, torch.zeros_like(ids), [4])
            length = ids.shape[1]
            assert given["reference_mask"][sample, place].sum() == length
            found = given["reference_values"][sample, place, :length]
            torch.testing.assert_close(found, last[0], atol=1e-5, rtol=1e-4)


def test_the_student_reads_what_it_makes_of_its_neighbours(setting: Setting, done: Experiment) -> None:
    given = read(setting, "student")
    assert set(given) == {"reference_input_ids", "reference_token_type_ids", "reference_mask"}
    table = NeighbourTable.open(neighbours_artifact(done, "train")).prefix(2)
    for sample, place in ((0, 0), (7, 1)):
        row = int(table[sample, place])
        length = int(given["reference_mask"][sample, place].sum())
        assert given["reference_input_ids"][sample, place, :length].tolist() == setting.tokens.ids(row)[:16].tolist()
    student = load_classifier(model_folder(done, "prediction-student"))
    assert student.config.reference_size == done.student.hidden


def test_crossfit_reads_teachers_that_never_saw_the_row(setting: Setting, done: Experiment) -> None:
    folds = row_folds(done, setting.tokens)
    assert set(folds.tolist()) == {0, 1} and 20 <= folds.sum() <= 40
    groups = setting.tokens.documents
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    given = read(setting, "crossfit")
    table = NeighbourTable.open(neighbours_artifact(done, "train")).prefix(2)[SAMPLES]
    teachers = [Teacher.load(str(task_teacher(done, fold)), num_labels=2) for fold in (0, 1)]
    for place in np.argwhere(table >= 0)[:6].tolist():
        row = int(table[tuple(place)])
        ids, types = (
            torch.from_numpy(of(row).astype(np.int64))[None] for of in (setting.tokens.ids, setting.tokens.types)
        )
        with torch.no_grad():
            own, other = (teachers[fold](ids, None, types, [4])[0][0, :16] for fold in (folds[row], 1 - folds[row]))
        read_of = given["reference_values"][tuple(place)][: len(own)]
        assert (read_of - own).abs().max() < 5e-3 < (read_of - other).abs().max()


def test_a_folds_teacher_is_trained_on_the_other_rows(done: Experiment) -> None:
    tokens = TokenSet.open(tokens_artifact(done, "train"))
    rows = np.flatnonzero(row_folds(done, tokens) != 0)
    objective = FinetuneObjective(Teacher.load(done.teacher.model, num_labels=2), tokens, 2, rows)
    assert len(objective.lengths) == len(rows) < len(tokens)
    batch = objective.batch(np.arange(3), CPU)
    assert tokens.labels is not None and batch["labels"].tolist() == tokens.labels[rows[:3]].tolist()
    assert batch["inputs"]["input_ids"][1, : tokens.lengths[rows[1]]].tolist() == tokens.ids(int(rows[1])).tolist()


@pytest.mark.parametrize(("system", "right"), [("label", 1.0), ("shuffled-labels", None)])
def test_labels_alone(setting: Setting, done: Experiment, system: str, right: float | None) -> None:
    given = read(setting, system)
    assert given["reference_values"].shape == (12, 2, 1, 32 + 4)
    assert given["reference_values"][..., :32].abs().sum() == 0
    told = given["reference_values"][:, :, 0, 32:34].argmax(dim=-1).numpy()
    table = NeighbourTable.open(neighbours_artifact(done, "train")).prefix(2)[SAMPLES]
    assert setting.tokens.labels is not None
    present = given["reference_mask"][:, :, 0].numpy()
    assert ((table >= 0) == present).all()
    agreement = (told == setting.tokens.labels[table])[present].mean()
    assert agreement == right if right else 0.2 < agreement < 0.8


def test_where_only_the_task_reads_references_all_share_one_general_student(done: Experiment) -> None:
    assert len({general_student(done, system) for system in SYSTEMS}) == 1
    everywhere = tiny_experiment(done.run.dir.parent, EVERY)
    shared = {system: general_student(everywhere, system) for system in SYSTEMS}
    of_task = {shared[system] for system in SYSTEMS if SYSTEMS[system].of_task}
    assert of_task == {shared["refbert"]} and shared["refbert"] != shared["tinybert"]
    assert len(set(shared.values())) == len(SYSTEMS) - 3


def test_another_seed_of_the_students_shares_all_but_them(done: Experiment, root: Path) -> None:
    second = tiny_experiment(root, "references.stages=task", "distill.seed=7", f"run.dir={root / 'second'}")
    assert pipeline.run(second) == ["distill-task", "evaluate", "export"]
    rows = read_json(second.run.dir / "results.json")
    assert {row["system"]: row["seed"] for row in rows} == {"teacher": 1, "knn": 1, "refbert": 7, "tinybert": 7}
    first, other = (map_tensors(answers_path(exp.run.dir, "tinybert"))["logits"] for exp in (done, second))
    assert np.abs(first - other).max() > 1e-3


def test_references_in_the_general_stage_alone(root: Path) -> None:
    exp = tiny_experiment(root, "references.stages=general", "systems=[refbert]", f"run.dir={root / 'general'}")
    pipeline.run(exp)
    student = load_classifier(model_folder(exp, "prediction-refbert"))
    assert student.config.reference_count == 0 and not (exp.run.dir / "export" / "bank").exists()
    assert {row["system"] for row in read_json(exp.run.dir / "results.json")} == {"teacher", "refbert"}


@pytest.mark.parametrize("label", ["gold", "teacher"])
def test_a_label_beside_the_text(root: Path, label: str) -> None:
    run_dir = root / f"label-{label}"
    settings = (f"references.label={label}", "references.stages=both", "systems=[refbert]", f"run.dir={run_dir}")
    exp = tiny_experiment(root, *settings)
    pipeline.run(exp)
    setting = Setting(exp, "task", CPU)
    given = read(setting, "refbert")
    plain = Setting(tiny_experiment(root, *settings[1:]), "task", CPU).references("refbert", "train")
    assert plain is not None
    text = plain.of(SAMPLES)
    assert torch.equal(given["reference_values"][:, :, 1:, :32], text["reference_values"])
    assert torch.equal(given["reference_mask"][:, :, 1:], text["reference_mask"])
    assert given["reference_values"][:, :, 1:, 32:].abs().sum() == 0
    table = NeighbourTable.open(neighbours_artifact(exp, "train")).prefix(2)[SAMPLES]
    told = given["reference_keys"][:, :, 0, 32:34]
    if label == "gold":
        assert setting.tokens.labels is not None
        known = np.eye(2, dtype=np.float32)[setting.tokens.labels.astype(int)]
    else:
        known = torch.from_numpy(setting.states.logits(np.arange(60))).softmax(-1).numpy()
    np.testing.assert_allclose(told.numpy()[table >= 0], known[table[table >= 0]], atol=1e-6)

    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    shipped = RefBertPipeline(exp.run.dir / "export", device="cpu")
    kept = map_tensors(answers_path(exp.run.dir, "refbert"))["logits"]
    np.testing.assert_allclose(shipped.logits(dev.texts())[0], kept, atol=5e-3)

    editor, teacher = BankEditor(exp.run.dir / "export"), str(task_teacher(exp))
    if label == "gold":
        with pytest.raises(Exception, match="gold labels of its references, which new texts do not have"):
            editor.add([("a new text", "and its second sentence")], teacher)
        return
    row = int(table[0, 0])
    (number,) = editor.add([setting.tokens.texts(row, row + 1)[0]], teacher)
    bank = editor.open()
    before, after = (bank.gather(np.array([[one]])) for one in (row, number))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, atol=5e-3)
