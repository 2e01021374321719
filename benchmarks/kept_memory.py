"""Training steps of a student on a CPU with and without what workers tell the allocator (library_environment).

    python benchmarks/kept_memory.py [TOKENS]

4 layers x 312 with BERT's vocabulary and random weights; steps of 4 passes of 8 samples of TOKENS (32) tokens. Each way
has processes of its own, which take turns; medians, and the ratio of each pair.
"""

import os
import statistics
import subprocess
import sys
import time

import torch

from refbert_dist.config import EngineConfig, OptimConfig
from refbert_dist.engine.distributed import process_group, training_engine
from refbert_dist.engine.processes import library_environment
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel
from refbert_dist.tracking.quiet import quiet_libraries

PAIRS = 5
STEPS, WARM_UP = 12, 3
PASSES, SAMPLES = 4, 8


def measure(tokens: int) -> None:
    """Print the median seconds of a step."""
    quiet_libraries()
    shape = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
    ids = torch.randint(1000, 30000, (SAMPLES, tokens))
    seconds = []
    with process_group(600):
        engine = training_engine(RefBertModel(RefBertConfig(**shape)), OptimConfig(steps=1), EngineConfig(), PASSES)
        for _ in range(STEPS + WARM_UP):
            start = time.perf_counter()
            for _ in range(PASSES):
                engine.backward(engine(input_ids=ids).last_hidden_state.square().mean())
                engine.step()
            seconds.append(time.perf_counter() - start)
    print(statistics.median(seconds[WARM_UP:]))


def main() -> None:
    tokens = int((*sys.argv[1:], "32")[0])
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    worker = os.environ | library_environment(threads)
    ways = {"plain": {k: v for k, v in worker.items() if not k.startswith("MALLOC_")}, "kept": worker}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(PAIRS):
        for way, environment in ways.items():
            argv = [sys.executable, __file__, str(tokens), "measure"]
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
            found[way].append(float(done.stdout.split()[-1]))
    ratios = sorted(kept / plain for kept, plain in zip(found["kept"], found["plain"], strict=True))
    print(f"{PASSES} passes of {SAMPLES} x {tokens} tokens, {threads} threads, {PAIRS} pairs of processes")
    for way, seconds in found.items():
        print(f"{way:6} {1e3 * statistics.median(seconds):.0f} ms a step")
    print(f"kept / plain: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    measure(int(sys.argv[1])) if sys.argv[2:] else main()
