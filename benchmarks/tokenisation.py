"""Preparation of a corpus against the raw tokenizer on the same texts, one process and one thread each.

    python benchmarks/tokenisation.py EXP.yaml [FIELD=VALUE]...

``prepare`` is all that the stage does with a source file: reading, tokenising, cutting, hashing, writing. ``raw`` is
``tokenizers.Tokenizer.encode_batch`` of the same texts in the same batches, thrown away. Rounds alternate; CPU and wall
seconds of each, and the median of their ratios, are printed. A few megabytes of text are enough.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from refbert_dist.artifacts import Artifact
from refbert_dist.config import load_experiment
from refbert_dist.data.corpus import sources
from refbert_dist.data.samples import BATCH_CHARACTERS
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import SHARD_FACTOR
from refbert_dist.data.units import corpus_units, write_unit
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 15


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    quiet_libraries()
    exp = load_experiment(sys.argv[1], sys.argv[2:])
    assert exp.corpus
    tokenizer = load_tokenizer(exp.teacher.model)
    batches: list[list[str]] = [[]]
    size = 0
    for document in (document for source in sources(exp.corpus) for document in source.documents()):
        if size >= BATCH_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(document)
        size += len(document)

    def raw() -> None:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        for batch in batches:
            backend.encode_batch(batch, add_special_tokens=False)

    rounds: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS + 1):
            artifact = Artifact(Path(folder, str(number)))

            def prepare(artifact: Artifact = artifact) -> None:
                for unit in corpus_units(exp.corpus):
                    shard_tokens = exp.cache.shard_tokens * SHARD_FACTOR
                    write_unit(artifact, unit, tokenizer, "", exp.corpus.min_length, shard_tokens, lambda samples: None)

            # Whoever goes second finds warmer caches.
            first, second = (raw, prepare) if number % 2 else (prepare, raw)
            pair = {first: timed(first), second: timed(second)}
            if number:  # the first round warms up
                rounds.append((*pair[raw], *pair[prepare]))
        tokens = sum((artifact.sidecar(name) or {}).get("tokens", 0) for name in artifact.committed())
    print(f"{tokens:,} tokens in {sum(map(len, batches)):,} documents, {ROUNDS} rounds")
    for name, column in (("raw     cpu", 0), ("raw     wall", 1), ("prepare cpu", 2), ("prepare wall", 3)):
        found = [values[column] for values in rounds]
        median = statistics.median(found)
        rate = f"{tokens / median:,.0f} tokens/s"
        print(f"{name:12} {median:6.2f} s  (min {min(found):.2f}, max {max(found):.2f})  {rate}")
    for name, column in (("cpu", 0), ("wall", 1)):
        ratios = sorted(values[column] / values[column + 2] for values in rounds)
        print(f"prepare / raw, {name:4}: {statistics.median(ratios):.3f} (min {ratios[0]:.3f}, max {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
