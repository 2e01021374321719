"""The teacher's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refbert_dist.artifacts import hash_strings
from refbert_dist.errors import UserError
from refbert_dist.models.locate import TEACHER, TOKENIZER_FILES, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(model_dir_or_name: str, field: str = TEACHER) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a model folder, hub name or ``package:NAME``.

    Raises :class:`UserError` naming ``field`` when there is none or it is not a fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = resolve_model(model_dir_or_name, field)
    folder = Path(place)
    # Without these files transformers may build an empty tokenizer from config.json alone, without a word.
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"{field} is '{model_dir_or_name}': {folder} holds no tokenizer "
            f"({', '.join(TOKENIZER_FILES[:2])}, ...); save the tokenizer beside the model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # Broken files raise whatever the Rust and JSON readers raise.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{field} is '{model_dir_or_name}': its tokenizer cannot be loaded ({reason}); give a local folder "
            "that holds one, or a hub name and a connection"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{field} is '{model_dir_or_name}': its tokenizer is {type(tokenizer).__name__}, not a fast one; "
            "save a tokenizer.json beside the model"
        )
    return tokenizer


def tokenized(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str | None]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ids and types, int64, of texts or pairs, cut to the tokenizer's ``model_max_length`` (the longer one first)."""
    if not texts:
        return [], []
    encoded = tokenizer(
        [first for first, _ in texts],
        None if texts[0][1] is None else [second for _, second in texts],
        truncation="longest_first",
        max_length=tokenizer.model_max_length,
        # Some tokenizers, RoBERTa's for one, leave them out unless asked.
        return_token_type_ids=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids, types = ([np.array(row, np.int64) for row in encoded[name]] for name in ("input_ids", "token_type_ids"))
    return ids, types


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Content hash of the serialised backend, without its truncation and padding, which calls change."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):
        content.pop(state, None)
    return hash_strings([json.dumps(content, sort_keys=True)])
