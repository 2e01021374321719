"""Where a student's weights come from: drawn at random, the teacher's mapped layers, or another checkpoint.

What ``config.json`` tells is checked without torch; tensors are compared one by one when they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refbert_dist.artifacts import hash_file
from refbert_dist.config import Experiment
from refbert_dist.errors import UserError
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.locate import OFFSET_POSITIONS, TEACHER, model_folder, teacher_info, weight_files

if TYPE_CHECKING:
    from torch import Tensor, nn

BERT_NAMED = ("bert", "refbert", "roberta", "xlm-roberta", "camembert", "electra")
"""Architectures whose layers hold what BERT's do, under BERT's names."""
SHAPE = {
    "heads": "num_attention_heads",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "intermediate": "intermediate_size",
}
"""Fields of ``student`` and their names in a ``config.json``."""
WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
LAYER = re.compile(r"(?<=^encoder\.layer\.)\d+")
FEED_FORWARD = re.compile(r"^encoder\.layer\.\d+\.(intermediate|output)\.dense\.")


def check_start(exp: Experiment) -> None:
    """Raise UserError naming ``student.init`` if a model of that architecture or shape cannot be the student's start.

    Of the teacher only some layers are taken, and none of its feed-forward layers where their width differs.
    """
    init = exp.student.init
    if init == "random":
        return
    there: dict[str, Any]
    if init == "teacher":
        info = teacher_info(exp.teacher.model)
        model_type, there = info.model_type, {"heads": info.heads, "hidden": info.hidden}
    else:
        config = _config(exp)
        # The config.json of the published TinyBERTs does not say what it is.
        model_type, there = config.get("model_type", "bert"), {name: config.get(key) for name, key in SHAPE.items()}
    if model_type not in BERT_NAMED:
        raise UserError(
            f"student.init is '{init}', a model of type '{model_type}', which has no place in a BERT student (known: "
            f"{', '.join(BERT_NAMED)}); set student.init=random"
        )
    for name, value in there.items():
        here = getattr(exp.student, name)
        if value != here:
            raise UserError(
                f"student.init is '{init}', whose {SHAPE[name]} is {value}, but student.{name} is {here}; "
                f"set student.{name}={value} or student.init=random"
            )


def start_recipe(exp: Experiment) -> Any:
    """What tells one start from another, for the key of a model; a checkpoint counts by content, wherever it lies."""
    if exp.student.init in ("random", "teacher"):
        return exp.student.init
    stats = [(path, path.stat()) for path in _weight_files(exp)]
    return {"weights": [_hash(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats], **start_config(exp)}


@lru_cache
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    # Size and time are there for the cache alone: a file is read again when one of them is another.
    return hash_file(path)


def start_config(exp: Experiment) -> dict[str, Any]:
    """Fields of the student's configuration without which the weights of its start would mean something else."""
    if exp.student.init == "random":
        return {}
    config = _config(exp)
    return {name: config[name] for name in ("hidden_act", "layer_norm_eps") if name in config}


def load_start(exp: Experiment, student: nn.Module) -> None:
    """Overwrite a plain encoder's weights with those of ``student.init``; if that is random, they stay as drawn.

    Raises UserError as :func:`check_start` does, and for the first tensor that has another shape there.
    """
    if exp.student.init == "random":
        return
    check_start(exp)
    given = _encoder_tensors(exp)
    sources: Sequence[int] = range(1, exp.student.layers + 1)
    left_out = False
    if exp.student.init == "teacher":
        info = teacher_info(exp.teacher.model)
        sources = layer_map(exp.distill.layer_map, exp.student.layers, info.layers)
        left_out = info.intermediate != exp.student.intermediate
    for name, tensor in student.state_dict().items():
        if left_out and FEED_FORWARD.match(name):
            continue
        source = LAYER.sub(lambda found: str(sources[int(found[0])] - 1), name)
        shape = list(given[source].shape) if source in given else "missing"
        if shape != list(tensor.shape):
            raise UserError(
                f"student.init is '{exp.student.init}', whose tensor {source} is {shape}, but the student's is "
                f"{list(tensor.shape)}; give a checkpoint that fits teacher and student, or set student.init=random"
            )
        tensor.copy_(given[source])


def _encoder_tensors(exp: Experiment) -> dict[str, Tensor]:
    """The checkpoint's tensors under BERT's names and in BERT's layout, from the embeddings up."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in _weight_files(exp):
        is_pickle = path.suffix != ".safetensors"
        tensors |= torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    prefix = next((name.removesuffix(WORDS) for name in tensors if name.endswith(WORDS)), None)
    if prefix is None:
        raise UserError(f"student.init is '{exp.student.init}', which holds no {WORDS}; give a BERT-like checkpoint")
    found = {_modern(name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}
    config = _config(exp)
    if config.get("model_type") in OFFSET_POSITIONS:
        found[POSITIONS] = found[POSITIONS][config.get("pad_token_id", 1) + 1 :]
    # A model with one token type gives it to both sentences of a pair.
    if found[TOKEN_TYPES].shape[0] == 1:
        found[TOKEN_TYPES] = found[TOKEN_TYPES].expand(2, -1)
    return found


def _modern(name: str) -> str:
    """Google's checkpoints still have the names of TensorFlow's normalisation."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _config(exp: Experiment) -> Mapping[str, Any]:
    path = _folder(exp) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"student.init is '{exp.student.init}' but {path} cannot be read ({type(error).__name__}); give a whole "
            "model folder"
        ) from error
    return config


def _weight_files(exp: Experiment) -> list[Path]:
    return weight_files(_folder(exp), _field(exp))


def _folder(exp: Experiment) -> Path:
    return model_folder(exp.teacher.model if exp.student.init == "teacher" else exp.student.init, _field(exp))


def _field(exp: Experiment) -> str:
    """The setting that names the checkpoint."""
    return TEACHER if exp.student.init == "teacher" else "student.init"
