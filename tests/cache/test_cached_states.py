"""What the cache gives back is what the teacher computes, whoever asks and from wherever it comes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from teachers import lively_teacher
from tiny import tiny_experiment
from transformers import AutoModel, AutoModelForSequenceClassification

from refbert_dist import pipeline
from refbert_dist.artifacts import map_tensors
from refbert_dist.cache.contract import states_artifact, task_teacher
from refbert_dist.cache.forward import load_teacher
from refbert_dist.cache.states import CachedStates, OnlineStates, TeacherStates, open_states
from refbert_dist.config import Experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.errors import UserError
from refbert_dist.models.parts import attention_scores
from refbert_dist.models.teacher import Teacher

HALF = {"rtol": 2.0**-10, "atol": 1e-5}
"""float16 rounds by 2^-11 at most; the rest is float32 in other batches."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Built:
    exp: Experiment
    tokens: TokenSet
    cached: CachedStates
    online: TeacherStates
    teacher: Teacher

    def plain(self, sample: int) -> tuple[torch.Tensor, ...]:
        """All hidden states ``[L, T]`` and scores' probabilities of one sample, by transformers alone."""
        model = AutoModel.from_pretrained(self.exp.teacher.model).eval()
        with torch.no_grad():
            outputs = model(**self.inputs(sample, model), output_hidden_states=True)
        return tuple(state[0] for state in outputs.hidden_states)

    def inputs(self, sample: int, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        given = {"input_ids": torch.from_numpy(self.tokens.ids(sample).astype(np.int64))[None]}
        if model.config.model_type == "bert":
            given["token_type_ids"] = torch.from_numpy(self.tokens.types(sample).astype(np.int64))[None]
        return given


@pytest.fixture(scope="module", params=["bert", "roberta", "mpnet"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp(request.param)
    lively_teacher(root / "teacher", request.param)
    exp = tiny_experiment(root, "task=null", "cache.layers=all", "corpus.max_documents=3", "cache.shard_tokens=400")
    pipeline.run(exp, ["cache-general"])
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    teacher = load_teacher(exp, "general")
    cached = open_states(exp, "general", "targets", teacher, CPU)
    assert isinstance(cached, CachedStates) and len(cached.plan.shards) > 3
    return Built(exp, tokens, cached, OnlineStates(teacher, tokens, CPU), teacher)


def test_stored_states_are_those_of_a_plain_forward(built: Built) -> None:
    # First and last of a shard, and the shortest, which was padded in its batch.
    border = built.cached.plan.shards[1].start
    for sample in {0, border - 1, border, len(built.tokens) - 1, int(built.tokens.lengths.argmin())}:
        plain = built.plain(sample)
        found = built.cached.layers(np.array([sample]), (1, 2, 3, 4))
        for layer in (1, 2, 3, 4):
            assert found[layer][0].dtype == np.float32
            np.testing.assert_allclose(found[layer][0], plain[layer].numpy(), **HALF)
    assert len({int(length) for length in built.tokens.lengths}) > 1


def test_states_are_stored_without_padding_in_half_precision(built: Built) -> None:
    total = 0
    for plan in built.cached.plan.shards:
        shard = map_tensors(built.cached.artifact.file(plan.name, "safetensors"))
        lengths = built.tokens.lengths[plan.start : plan.stop]
        assert shard["offsets"].tolist() == np.cumsum([0, *lengths]).tolist()
        assert set(shard) == {"offsets", "h1", "h2", "h3", "h4"}
        for layer in (1, 2, 3, 4):
            assert shard[f"h{layer}"].dtype == np.float16
            assert shard[f"h{layer}"].shape == (lengths.sum(), 32)
        total += int(lengths.sum())
    manifest = states_artifact(built.exp, "general").manifest()
    assert (manifest["tokens"], manifest["samples"]) == (total, len(built.tokens))
    assert total == built.tokens.lengths.sum()


def test_cached_and_online_states_agree_in_any_order_over_shard_borders(built: Built) -> None:
    samples = np.random.default_rng(0).permutation(len(built.tokens))
    samples = np.concatenate([samples, samples[:3]])  # and some twice
    cached, online = (states.layers(samples, (4, 1)) for states in (built.cached, built.online))
    assert list(cached) == list(online) == [4, 1]
    for layer in (4, 1):
        for place, (one, other) in enumerate(zip(cached[layer], online[layer], strict=True)):
            assert one.shape == other.shape == (built.tokens.lengths[samples[place]], 32)
            np.testing.assert_allclose(one, other, **HALF)


def test_layer_zero_is_recomputed_from_the_ids(built: Built) -> None:
    sample = len(built.tokens) // 2
    given = built.inputs(sample, built.teacher.encoder)
    with torch.no_grad():
        embedded = built.teacher.embed(given["input_ids"], torch.zeros_like(given["input_ids"]))
    torch.testing.assert_close(embedded[0], built.plain(sample)[0], rtol=1e-6, atol=1e-6)


def test_scores_from_layer_inputs_are_the_teachers_own(built: Built) -> None:
    """Softmax of the recomputed scores against eager attention; and the scores themselves, before any softmax."""
    sample = int(built.tokens.lengths.argmax())
    model = AutoModel.from_pretrained(built.exp.teacher.model, attn_implementation="eager").eval()
    own: dict[int, torch.Tensor] = {}
    with torch.no_grad(), _recorded_scores(model, own):
        outputs = model(**built.inputs(sample, model), output_attentions=True)
    below = built.online.layers(np.array([sample]), (1, 2, 3))
    rounded = built.cached.layers(np.array([sample]), (1, 2, 3))
    for layer in (2, 3, 4):
        with torch.no_grad():
            scores, stored = (
                attention_scores(built.teacher.encoder, layer, torch.from_numpy(states[layer - 1][0])[None])
                for states in (below, rounded)
            )
        assert scores.std() > 0.5, "scores must differ, or the comparison would say nothing"
        torch.testing.assert_close(scores, own[layer], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scores.softmax(-1), outputs.attentions[layer - 1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stored, own[layer], rtol=0, atol=5e-3 * float(own[layer].abs().max()))


class _recorded_scores:  # noqa: N801 - used as a context manager
    """Note what enters the softmax of every layer, while the model itself computes."""

    def __init__(self, model: torch.nn.Module, into: dict[int, torch.Tensor]) -> None:
        self.into = into
        self.softmax = torch.nn.functional.softmax

    def __enter__(self) -> None:
        def noting(scores: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
            self.into[len(self.into) + 1] = scores.clone()
            return self.softmax(scores, *arguments, **options)  # type: ignore[arg-type]

        torch.nn.functional.softmax = noting  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        torch.nn.functional.softmax = self.softmax


def test_a_layer_that_is_not_stored_is_named(built: Built) -> None:
    with pytest.raises(UserError, match=r"cache\.layers does not include layer 7.*cache\.layers=auto"):
        built.cached.layers(np.array([0]), (1, 7))


def test_the_settings_choose_cached_or_online_states(built: Built, tmp_path: Path) -> None:
    online = built.exp.model_copy(update={"distill": built.exp.distill.model_copy(update={"targets": "online"})})
    assert isinstance(open_states(online, "general", "targets", built.teacher, CPU), OnlineStates)
    users = [path.read_text().strip() for path in (states_artifact(built.exp, "general").path / "refs").iterdir()]
    assert users == [str(built.exp.run.dir)]


# -- the task's scope ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    exp = tiny_experiment(tmp_path_factory.mktemp("task"), "corpus=null", "finetune.learning_rate=0.01")
    pipeline.run(exp, ["cache-task"])
    return exp


def test_the_task_cache_holds_the_fine_tuned_teachers_states_and_logits(task: Experiment) -> None:
    tokens = TokenSet.open(tokens_artifact(task, "train"))
    cached = open_states(task, "task", "targets", load_teacher(task, "task"), CPU)
    samples = np.array([59, 3, 30, 3])
    logits = cached.logits(samples)
    assert logits.shape == (4, 2) and logits.dtype == np.float32
    np.testing.assert_array_equal(logits[1], logits[3])
    model = AutoModelForSequenceClassification.from_pretrained(task_teacher(task)).eval()
    states = cached.layers(samples, (4,))[4]
    for place, sample in enumerate(samples.tolist()):
        given = {
            "input_ids": torch.from_numpy(tokens.ids(sample).astype(np.int64))[None],
            "token_type_ids": torch.from_numpy(tokens.types(sample).astype(np.int64))[None],
        }
        with torch.no_grad():
            outputs = model(**given, output_hidden_states=True)
        np.testing.assert_allclose(logits[place], outputs.logits[0].numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(states[place], outputs.hidden_states[4][0].numpy(), rtol=2.0**-10, atol=1e-4)
    first = AutoModel.from_pretrained(task.teacher.model).eval()
    assert not torch.equal(first.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight), (
        "the fine-tuned teacher must differ from the given one, or this says nothing of which was cached"
    )


def test_task_logits_agree_with_the_online_teacher(task: Experiment) -> None:
    tokens = TokenSet.open(tokens_artifact(task, "train"))
    teacher = load_teacher(task, "task")
    samples = np.arange(len(tokens))[::-1].copy()
    cached = open_states(task, "task", "targets", teacher, CPU).logits(samples)
    online = OnlineStates(teacher, tokens, CPU).logits(samples)
    np.testing.assert_allclose(cached, online, rtol=1e-5, atol=1e-5)
    assert np.ptp(cached, axis=0).min() > 1e-4, "rows must differ, or their order was not compared"


def test_logits_have_a_place_of_their_own_in_each_shard(task: Experiment) -> None:
    for path in states_artifact(task, "task").files("safetensors"):
        arrays = map_tensors(path)
        assert arrays["logits"].shape == (len(arrays["offsets"]) - 1, 2)
