"""Tiny random masked language models, each with a tokenizer of its own kind."""

from pathlib import Path

import torch
from teachers import byte_tokenizer
from tiny import MINILM
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from refbert_dist.models.locate import resolve_model


def masked_model(folder: Path, model_type: str = "bert", positions: int = 96) -> Path:
    """2 layers x 32, with a masked-LM head; of type bert (MiniLM's tokenizer), roberta or mpnet (bytes)."""
    bert = model_type == "bert"
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MINILM)) if bert else byte_tokenizer()
    fields: dict[str, object] = {} if bert else {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if model_type == "roberta":
        fields["type_vocab_size"] = 1
    torch.manual_seed(5)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=positions if bert else positions + 2,
        initializer_range=0.3,
        **fields,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
