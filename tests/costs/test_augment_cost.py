import gzip
from pathlib import Path

import pytest
from masked_models import masked_model
from tiny import tiny_experiment, tiny_vectors

from refbert_dist.augment.build import build_augmented
from refbert_dist.costs.augment import AugmentCost, augment_cost
from refbert_dist.costs.extents import extents
from refbert_dist.costs.rates import CORE, CPU, Rates
from refbert_dist.costs.stages import Place, stage_costs
from refbert_dist.data.tokens import build_tokens, source_parts, tokens_artifact


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("costs")
    tiny_experiment(folder)
    tiny_vectors(folder / "vectors.txt", folder / "task")
    masked_model(folder / "masked")
    return folder


def settings(root: Path, *overrides: str) -> tuple[str, ...]:
    return ("corpus=null", f"task.augment={{copies: 3, glove: {root / 'vectors.txt'}}}", *overrides)


def cost(root: Path, *overrides: str) -> AugmentCost:
    exp = tiny_experiment(root, *settings(root, f"cache.dir={root / 'empty'}", *overrides))
    found = extents(exp)
    return augment_cost(exp, found["train"].lengths, found["augmented"].lengths)


def test_a_plan_knows_copies_before_and_after_they_are_made(root: Path) -> None:
    exp = tiny_experiment(root, *settings(root))
    place = Place(rates=Rates(CPU, CORE), processes=2, cores=2)
    planned = stage_costs(exp, extents(exp), place)
    plain = tiny_experiment(root, *settings(root, "task.augment=null"))
    alone = stage_costs(plain, extents(plain), place)
    assert planned["prepare"] == alone["prepare"] and planned["finetune"] == alone["finetune"]
    assert planned["augment"].samples == 4 * 60 and planned["augment"].files == 3
    # The rows are cached for references, too.
    assert planned["cache-task"].samples == 5 * alone["cache-task"].samples
    assert planned["retrieve"].samples == alone["retrieve"].samples + 4 * 60
    for part in source_parts(exp):
        build_tokens(exp, part)
    manifest = build_augmented(exp)
    made = stage_costs(exp, extents(exp), place)["augment"]
    assert (made.samples, made.tokens) == (manifest["samples"], pytest.approx(manifest["tokens"]))
    assert made.bytes == pytest.approx(tokens_artifact(exp, "augmented").manifest()["bytes"], rel=0.3)


def test_what_finds_candidates_counts(root: Path) -> None:
    glove, both = cost(root), cost(root, f"task.augment.masked_lm={root / 'masked'}")
    assert glove.masked.flops == 0 and both.masked.flops > 0
    assert both.core_s == glove.core_s and both.load_s == glove.load_s > 0
    masked = cost(root, f"task.augment.masked_lm={root / 'masked'}", "task.augment.candidates=masked-lm")
    assert masked.load_s == 0 and masked.core_s < both.core_s and masked.masked == both.masked


def test_a_packed_file_of_vectors_is_as_large_as_what_is_in_it(root: Path, tmp_path: Path) -> None:
    packed = tmp_path / "vectors.txt.gz"
    packed.write_bytes(gzip.compress((root / "vectors.txt").read_bytes()))
    assert cost(root, f"task.augment.glove={packed}").load_s == pytest.approx(cost(root).load_s, rel=0.3)
