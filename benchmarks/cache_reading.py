"""Reading a teacher cache at random, in one process and one thread, from the page cache: what the code itself costs.

    python benchmarks/cache_reading.py EXP.yaml [FIELD=VALUE]...

Needs the built cache (refbert cache build EXP.yaml). Rounds alternate between the cache and a loop over numpy alone,
which slices and converts the same rows of one memory-mapped float16 array that holds nothing else.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from refbert_dist.cache.states import open_cache
from refbert_dist.config import load_experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.models.locate import teacher_info
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 7
BATCH = 32
SAMPLES = 2048


def main() -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    exp = load_experiment(sys.argv[1], sys.argv[2:])
    width = teacher_info(exp.teacher.model).hidden
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    cached = open_cache(exp, "general", tokens, width)
    layer = max(int(name[1:]) for name in cached.codecs)
    rng = np.random.default_rng(0)
    samples = rng.permutation(cached.plan.rows)[:SAMPLES]
    lengths = cached.plan.stored[np.searchsorted(cached.plan.rows, samples)]
    offsets = np.concatenate([[0], np.cumsum(cached.plan.stored)])
    starts = offsets[np.searchsorted(cached.plan.rows, samples)]
    rates: dict[str, list[float]] = {"cache": [], "numpy": []}
    decoded = int(lengths.sum()) * width * 4
    with tempfile.TemporaryDirectory() as folder:
        flat = np.memmap(Path(folder) / "flat", np.float16, "w+", shape=(int(offsets[-1]), width))
        flat[:] = rng.normal(size=(1, width))
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            for first in range(0, len(samples), BATCH):
                cached.layers(samples[first : first + BATCH], (layer,))
            middle = time.perf_counter()
            for row, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                flat[row : row + length].astype(np.float32)
            end = time.perf_counter()
            rates["cache"].append(decoded / (middle - start) / 1e9)
            rates["numpy"].append(decoded / (end - middle) / 1e9)
    print(
        f"{exp.cache.codec}: {len(samples)} samples of {lengths.mean():.1f} tokens at random, layer {layer}, 1 thread"
    )
    for name, found in rates.items():
        found.pop(0)  # the first round warms up
        tokens_s = statistics.median(found) * 1e9 / width / 4
        print(f"{name:6} {statistics.median(found):6.2f} GB/s of float32   {tokens_s:10.0f} tokens/s")
    ratios = sorted(ours / theirs for ours, theirs in zip(rates["cache"], rates["numpy"], strict=True))
    print(f"cache / numpy: {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
