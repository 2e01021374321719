"""Find a teacher and describe it from its files alone: no torch, no transformers, no import of a teacher's package."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from refbert_dist.errors import UserError

PACKAGE_PREFIX = "package:"
TEACHER = "teacher.model"
"""The field that most models are named by; errors name the field that it was."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
# These number positions from padding_idx + 1, so that many rows of the position table are never used.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
WITHOUT_TOKEN_TYPES = ("mpnet", "distilbert")
# DistilBERT's own names for what the other encoders call by BERT's.
DISTILBERT_NAMES = {
    "num_hidden_layers": "n_layers",
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}
MASKED_LM_HEADS = (
    *("cls.predictions.transform.", "lm_head.dense.", "vocab_transform."),
    *("generator_predictions.", "predictions.dense."),
)
"""How the names of a masked-LM head's weights begin: BERT, RoBERTa and MPNet, DistilBERT, ELECTRA, ALBERT."""
READ_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """A teacher's shape, as its ``config.json`` states it. ``max_positions`` is the longest input in tokens."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    max_positions: int
    vocab_size: int
    type_vocab_size: int
    pad_token_id: int


def _published(model_type: str, vocab_size: int, layers: int = 12, hidden: int = 768) -> TeacherInfo:
    roberta = model_type == "roberta"
    return TeacherInfo(
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        heads=hidden // 64,
        intermediate=4 * hidden,
        max_positions=512,
        vocab_size=vocab_size,
        type_vocab_size=1 if roberta else 2,
        pad_token_id=1 if roberta else 0,
    )


_GOOGLE = {
    "bert-base-uncased": _published("bert", 30522),
    "bert-base-cased": _published("bert", 28996),
    "bert-large-uncased": _published("bert", 30522, 24, 1024),
    "bert-large-cased": _published("bert", 28996, 24, 1024),
    "bert-base-multilingual-uncased": _published("bert", 105879),
    "bert-base-multilingual-cased": _published("bert", 119547),
}
_FACEBOOK = {
    "roberta-base": _published("roberta", 50265),
    "roberta-large": _published("roberta", 50265, 24, 1024),
}
WELL_KNOWN = {
    **{name: info for short, info in _GOOGLE.items() for name in (short, f"google-bert/{short}")},
    **{name: info for short, info in _FACEBOOK.items() for name in (short, f"FacebookAI/{short}")},
}
"""Shapes of published models by their hub names, so that a run of one can be planned where the hub is out of reach."""


def resolve_model(spec: str, field: str = TEACHER) -> str:
    """Turn the value of ``field`` into a folder path, or return a hub name as it is.

    Raises UserError when a package or folder is missing.
    """
    if spec.startswith(PACKAGE_PREFIX):
        return str(_package_folder(spec, field))
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_file() or not HUB_NAME.fullmatch(spec) or spec.startswith("."):
        raise UserError(f"{field} is '{spec}', which is not a folder; give a model folder or a hub name")
    return spec


def _package_folder(spec: str, field: str) -> Path:
    name, _, inner = spec.removeprefix(PACKAGE_PREFIX).partition("/")
    # find_spec imports the parents of a dotted name, so only a top-level package is looked for.
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"{field} is '{spec}' but the package '{name}' is not installed; "
            f"run `pip install {name.replace('_', '-')}` or name another model"
        )
    root = Path(next(iter(found.submodule_search_locations)))
    if inner:
        if not (root / inner).is_dir():
            raise UserError(f"{field} is '{spec}' but {root} holds no folder '{inner}'; correct the folder")
        return root / inner
    # A sentence-transformers model keeps small config.json files in folders below the model's own.
    holders = [path.parent for path in sorted(root.rglob("config.json"))]
    outermost = [folder for folder in holders if not any(other in folder.parents for other in holders)]
    if len(outermost) != 1:
        names = ", ".join(str(folder.relative_to(root)) for folder in outermost) or "none"
        raise UserError(
            f"{field} is '{spec}' but the package must hold one folder with a config.json (found: {names}); "
            f"write {PACKAGE_PREFIX}{name}/FOLDER"
        )
    return outermost[0]


def model_folder(spec: str, field: str = TEACHER) -> Path:
    """Folder that holds the model's files; a hub model is taken from the hub's cache, or downloaded unless offline."""
    resolved = resolve_model(spec, field)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download

    patterns = [*WEIGHT_FILES, *TOKENIZER_FILES, "*.json", "*.txt", "model-*.safetensors", "pytorch_model-*.bin"]
    return Path(_from_hub(spec, field, lambda: snapshot_download(resolved, allow_patterns=patterns)))


def _from_hub(spec: str, field: str, fetch: Any) -> str:
    try:
        return str(fetch())
    except (OSError, ValueError) as error:  # the hub's client raises many kinds, all of them below these two
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        why = "it is not in the local cache and HF_HUB_OFFLINE is set" if offline else "the hub does not give it"
        raise UserError(
            f"{field} is '{spec}', no folder here, and as a hub name {why} ({type(error).__name__}); "
            "give a model folder or download the model first"
        ) from error


def teacher_info(spec: str, field: str = TEACHER) -> TeacherInfo:
    """Describe a model from its ``config.json`` alone; of a well-known hub name not even that is needed.

    Raises UserError when it is not a BERT-like encoder.
    """
    resolved = resolve_model(spec, field)
    if not Path(resolved).is_dir() and resolved in WELL_KNOWN:
        return WELL_KNOWN[resolved]
    return _describe(spec, _config(spec, resolved, field), field)


def _config(spec: str, resolved: str, field: str) -> dict[str, Any]:
    if Path(resolved).is_dir():
        path = Path(resolved) / "config.json"
        if not path.is_file():
            raise UserError(f"{field} is '{spec}' but {resolved} lacks config.json; give a whole model folder")
    else:
        from huggingface_hub import hf_hub_download

        path = Path(_from_hub(spec, field, lambda: hf_hub_download(resolved, "config.json")))
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{field} is '{spec}' but its config.json is not JSON; restore the file") from error
    return config


def has_masked_lm(spec: str, field: str = TEACHER) -> bool:
    """Whether a model has a head that guesses masked tokens: by the names of its weights, as far as they can be told
    without torch; of others by what its ``config.json`` says it is.
    """
    resolved = resolve_model(spec, field)
    if resolved in WELL_KNOWN and not Path(resolved).is_dir():
        return True
    names = _weight_names(Path(resolved), field) if Path(resolved).is_dir() else None
    if names is None:
        kinds = _config(spec, resolved, field).get("architectures") or ()
        return any(kind.endswith("ForMaskedLM") or kind == "BertForPreTraining" for kind in kinds)
    return any(name.startswith(MASKED_LM_HEADS) for name in names)


def _weight_names(folder: Path, field: str) -> set[str] | None:
    """Names of the weights in a folder; None where only torch could read them."""
    names: set[str] = set()
    for path in weight_files(folder, field):
        if path.suffix != ".safetensors":
            return None
        with path.open("rb") as stream:
            names |= json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).keys()
    return names


def _describe(spec: str, config: Mapping[str, Any], field: str) -> TeacherInfo:
    model_type = config.get("model_type")
    if not model_type:
        raise UserError(f"{field} is '{spec}' but its config.json lacks model_type; add it, as \"bert\"")

    def number(key: str) -> int:
        value = config.get(DISTILBERT_NAMES[key] if model_type == "distilbert" and key in DISTILBERT_NAMES else key)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"{field} is '{spec}', of type '{model_type}', and its config.json gives {key} as {value!r}; "
                "give a BERT-like encoder"
            )
        return value

    offset = model_type in OFFSET_POSITIONS
    padding = config.get("pad_token_id")
    if padding is None:
        padding = 1 if offset else 0
    return TeacherInfo(
        model_type=str(model_type),
        layers=number("num_hidden_layers"),
        hidden=number("hidden_size"),
        heads=number("num_attention_heads"),
        intermediate=number("intermediate_size"),
        max_positions=number("max_position_embeddings") - (padding + 1 if offset else 0),
        vocab_size=number("vocab_size"),
        type_vocab_size=0 if model_type in WITHOUT_TOKEN_TYPES else int(config.get("type_vocab_size", 2)),
        pad_token_id=padding,
    )


def check_teacher_folder(spec: str, field: str = TEACHER) -> None:
    """Raise UserError, naming what lacks, if a model is a local folder that could not be loaded whole."""
    folder = Path(resolve_model(spec, field))
    if not folder.is_dir():
        return
    lacking = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        lacking.append("weights (model.safetensors or pytorch_model.bin)")
    else:
        lacking += [path.name for path in weight_files(folder, field) if not path.is_file()]
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        lacking.append("tokenizer files (tokenizer.json or vocab.txt)")
    if lacking:
        raise UserError(
            f"{field} is '{spec}' but {folder} lacks {', '.join(lacking)}; "
            "copy the missing files there or give another model"
        )


def weight_files(folder: Path, field: str = TEACHER) -> list[Path]:
    """The files that the weights lie in, in the order in which transformers looks for them."""
    for name in WEIGHT_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / shard for shard in sorted(set(shards))]
    raise UserError(f"{field}: the folder {folder} holds no weights; give a folder with model.safetensors")


def weights_fingerprint(folder: str | Path) -> str:
    """Hash (xxh3, 128 bits) of a model's tensors: names, types, shapes and bytes, in the order of their names.

    The same tensors give the same fingerprint however they are split over files, and in either container.
    """
    digests: dict[str, bytes] = {}
    for path in weight_files(Path(folder)):
        read = _safetensors_digests if path.suffix == ".safetensors" else _torch_digests
        digests.update(read(path))
    total = xxhash.xxh3_128()
    for name in sorted(digests):
        total.update(digests[name])
    return total.hexdigest()


def _start_digest(name: str, dtype: str, shape: list[int]) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(json.dumps([name, dtype, shape]).encode())


def _safetensors_digests(path: Path) -> Iterator[tuple[str, bytes]]:
    """Read tensor by tensor after the header (8 bytes of length, then JSON), in blocks of bounded size."""
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            digest = _start_digest(name, entry["dtype"], entry["shape"])
            begin, end = entry["data_offsets"]
            stream.seek(8 + header_bytes + begin)
            remaining = end - begin
            while remaining:
                block = stream.read(min(READ_BYTES, remaining))
                if not block:
                    raise UserError(f"teacher.model: {path} ends inside the tensor '{name}'; copy the file again")
                digest.update(block)
                remaining -= len(block)
            yield name, digest.digest()


def _torch_digests(path: Path) -> Iterator[tuple[str, bytes]]:
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    names |= {torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"}
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        digest = _start_digest(name, names.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape))
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        yield name, digest.digest()
