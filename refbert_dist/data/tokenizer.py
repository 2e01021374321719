"""The teacher's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from refbert_dist.artifacts import hash_strings
from refbert_dist.errors import UserError
from refbert_dist.models.locate import TOKENIZER_FILES, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(model_dir_or_name: str) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a model folder, hub name or ``package:NAME``.

    Raises :class:`UserError` naming ``teacher.model`` when there is none or it is not a fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = resolve_model(model_dir_or_name)
    folder = Path(place)
    # Without these files transformers may build an empty tokenizer from config.json alone, without a word.
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"teacher.model is '{model_dir_or_name}': {folder} holds no tokenizer "
            f"({', '.join(TOKENIZER_FILES[:2])}, ...); save the tokenizer beside the model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # Broken files raise whatever the Rust and JSON readers raise.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"teacher.model is '{model_dir_or_name}': its tokenizer cannot be loaded ({reason}); give a local folder "
            "that holds one, or a hub name and a connection"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"teacher.model is '{model_dir_or_name}': its tokenizer is {type(tokenizer).__name__}, not a fast one; "
            "save a tokenizer.json beside the model"
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Content hash of the serialised backend, without its truncation and padding, which calls change."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):
        content.pop(state, None)
    return hash_strings([json.dumps(content, sort_keys=True)])
