from pathlib import Path

import pytest
from masked_models import masked_model
from tiny import tiny_experiment, tiny_vectors

from refbert_dist import preflight
from refbert_dist.augment.sources import sources
from refbert_dist.config import Experiment
from refbert_dist.errors import UserError
from refbert_dist.models.locate import has_masked_lm


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    tiny_experiment(folder)
    tiny_vectors(folder / "vectors.txt", folder / "task")
    (folder / "empty.txt").touch()
    masked_model(folder / "masked")
    return folder


def experiment(root: Path, *overrides: str) -> Experiment:
    return tiny_experiment(root, f"task.augment={{glove: {root / 'vectors.txt'}}}", *overrides)


def test_without_a_masked_lm_head_it_is_glove_alone_and_says_so(root: Path) -> None:
    exp = experiment(root)
    preflight.check(exp)
    found = sources(exp)
    assert (found.names, found.glove) == (["glove"], root / "vectors.txt")
    assert found.remark == (
        f"teacher.model '{root / 'teacher'}' has no masked-LM head, so candidates come from GloVe alone"
    )


def test_the_teachers_own_head_or_another_models_is_used(root: Path) -> None:
    own = sources(experiment(root, f"teacher.model={root / 'masked'}"))
    assert (own.names, own.masked_lm, own.field, own.remark) == (
        *(["masked-lm", "glove"], str(root / "masked"), "teacher.model", None),
    )
    other = sources(experiment(root, f"task.augment.masked_lm={root / 'masked'}", "task.augment.candidates=masked-lm"))
    assert (other.names, other.field) == (["masked-lm"], "task.augment.masked_lm")
    assert sources(experiment(root, "task.augment.candidates=glove", "task.augment.masked_lm=/nowhere")).names == [
        "glove"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("candidates=masked-lm", r"task\.augment\.candidates is 'masked-lm', but teacher\.model '.*' has no masked-LM"),
        ("masked_lm=ROOT/teacher", r"task\.augment\.masked_lm is '.*', which has no masked-LM head; name"),
        ("masked_lm=ROOT/nowhere", r"task\.augment\.masked_lm is '.*', which is not a folder"),
        ("masked_lm=ROOT/task", r"task\.augment\.masked_lm is '.*' but .* lacks config\.json"),
        ("glove=ROOT/none.txt", r"task\.augment\.glove is '.*': no such file; give"),
        ("glove=ROOT/task", r"task\.augment\.glove is '.*': a folder; give"),
        ("glove=ROOT/task/dev.tsv", r"task\.augment\.glove: .*dev\.tsv line 1 is not a word and its numbers"),
        ("glove=ROOT/empty.txt", r"task\.augment\.glove is '.*', which is empty; give"),
        ("glove=null", r"task\.augment\.glove is missing, but task\.augment\.candidates is 'both'"),
        ("per_word=0", r"task\.augment\.per_word is 0: input should be greater than 0"),
        ("copies=0", r"task\.augment\.copies is 0: input should be greater than 0"),
        ("probability=1.5", r"task\.augment\.probability is 1\.5: input should be less than or equal to 1"),
        ("probability=-0.1", r"task\.augment\.probability is -0\.1: input should be greater than or equal to 0"),
        ("candidates=bert", r"task\.augment\.candidates is 'bert': input should be 'masked-lm', 'glove' or 'both'"),
    ],
)
def test_what_cannot_work_is_one_sentence(root: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        preflight.check(experiment(root, f"task.augment.{override.replace('ROOT', str(root))}"))
    assert "; " not in str(caught.value).partition("; ")[2]


def test_heads_are_known_by_weights_or_else_by_what_the_model_is_called(root: Path, tmp_path: Path) -> None:
    assert has_masked_lm(str(root / "masked")) and not has_masked_lm(str(root / "teacher"))
    assert has_masked_lm("bert-base-uncased") and has_masked_lm("FacebookAI/roberta-base")
    for kind, expected in (("BertForMaskedLM", True), ("BertForPreTraining", True), ("BertModel", False)):
        (tmp_path / "config.json").write_text(f'{{"architectures": ["{kind}"]}}')
        (tmp_path / "pytorch_model.bin").write_bytes(b"only torch can read it")
        assert has_masked_lm(str(tmp_path)) is expected
