"""Shape of RefBERT as an ordinary transformers configuration.

Imports transformers only: an exported model carries a copy of this file and of ``modeling_refbert.py``.
"""

# transformers is not typed, so its classes are Any to mypy:
# mypy: allow-subclassing-any

from typing import Literal

from transformers import BertConfig


class RefBertConfig(BertConfig):
    """Shape of a RefBERT student: BERT's fields, and what its first layer reads.

    ``reference_size`` is the teacher's width (T). ``reference_count`` is the number of references read for each input,
    ``reference_memory`` that of learned states (M) which all inputs read; with 0 of both the model is plain BERT and
    has no further parameters. ``reference_max_length`` is the number of tokens (R) of a reference that are read.
    ``reference_key_layer`` and ``reference_value_layer`` name the teacher layers whose states feed keys and values (0:
    embedding output, -1: last layer). ``reference_label`` says whether each reference begins with a token that tells
    its label, ``teacher``'s answer or the ``gold`` one, or not (``none``). ``tie_reference_projections`` uses one
    projection for both, ``reference_normalize=False`` does not normalise after it. ``reference_gate``, from
    ``reference_gate_start`` on, is a learned bias on scores of references, with ``token`` one that depends on their
    tokens. ``classifier_head="tinybert"`` reads ReLU(pooled output), without dropout.
    """

    model_type = "refbert"

    reference_size: int = 768
    reference_count: int = 1
    reference_memory: int = 0
    reference_max_length: int = 64
    reference_key_layer: int = 0
    reference_value_layer: int = -1
    reference_label: str = "none"
    tie_reference_projections: bool = False
    reference_normalize: bool = True
    reference_gate: Literal["none", "bias", "token"] = "none"
    reference_gate_start: float = -6.0
    classifier_head: Literal["bert", "tinybert"] = "bert"


__all__ = ["RefBertConfig"]
