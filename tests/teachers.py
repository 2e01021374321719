"""Tiny random teachers of several architectures, each with a tokenizer of its own kind."""

from pathlib import Path

import torch
from tiny import MINILM
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.models.locate import resolve_model

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
POSITIONS = 96


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: bytes, padding id 1, two separators in a pair, no token types among a model's inputs."""
    trained = ByteLevelBPETokenizer()
    texts = [text[:2000] for text, _ in zip(python_docs_documents(), range(20), strict=False)]
    trained.train_from_iterator(texts, vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    trained.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def lively_teacher(folder: Path, model_type: str, width: int = 32) -> Path:
    """4 layers x ``width``, 4 heads, of type bert, roberta or mpnet; weights so large that attention is not even."""
    bert = model_type == "bert"
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(MINILM)) if bert else byte_tokenizer()
    fields: dict[str, object] = {} if bert else {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if model_type == "roberta":
        fields["type_vocab_size"] = 1
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS if bert else POSITIONS + 2,
        initializer_range=0.3,
        **fields,
    )
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        # The standard start has no biases and unit norms, behind which mistakes could hide.
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
