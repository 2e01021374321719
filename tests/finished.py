"""Model folders as the export stage leaves them, without a training before: random, but lively."""

from pathlib import Path

import numpy as np
import torch
from tiny import MINILM

from refbert_dist.bank.writer import write_bank
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.inference.folder import BANK, add_code, projections_fingerprint, write_manifest
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertForSequenceClassification
from refbert_dist.references.bm25 import Bm25
from refbert_dist.references.guards import TextPair
from refbert_dist.references.search import joined

WIDTH = 24
MAX_LENGTH = 40


def sentences(count: int) -> list[str]:
    found = (text for document in python_docs_documents() for text in document.split(". "))
    return [
        text for text, _ in zip((text for text in found if 6 <= len(text.split()) <= 25), range(count), strict=False)
    ]


SINGLES: list[TextPair] = [(text, None) for text in sentences(30)]
PAIRS: list[TextPair] = list(zip(sentences(60)[:30], sentences(60)[30:], strict=True))


def config(**fields: object) -> RefBertConfig:
    return RefBertConfig(
        **{
            "vocab_size": 30522,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "reference_size": 32,
            "reference_count": 2,
            "initializer_range": 0.3,
            **fields,
        }
    )


def exported(folder: Path, pool: list[TextPair], codec: str = "fp16", **fields: object) -> Path:
    """A classifier with ``pool`` as its bank; without one if it reads no references."""
    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config(**fields))
    folder.mkdir(exist_ok=True)
    add_code(folder, model.config, with_lookup=model.config.reference_count > 0)
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(MINILM)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    if model.config.reference_count:
        rng = np.random.default_rng(0)
        lengths = rng.integers(3, 12, size=len(pool))
        keys, values = ([rng.normal(size=(length, WIDTH)) for length in lengths] for _ in range(2))
        write_bank(
            folder / BANK,
            pool,
            zip(keys, values, strict=True),
            count=model.config.reference_count,
            retriever=Bm25.build([joined(text) for text in pool], "english"),
            left_out=[3],
            codec=codec,  # type: ignore[arg-type]
            projections=projections_fingerprint(folder),
        )
    seal(folder, 1 if pool[0][1] is None else 2)
    return folder


def seal(folder: Path, sentences: int) -> None:
    """As the last step of an export."""
    write_manifest(folder, {"task": "invented", "sentences": sentences})
