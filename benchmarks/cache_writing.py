"""Writing the teacher cache against the bare forward of the same batches, in one process.

    python benchmarks/cache_writing.py EXP.yaml [FIELD=VALUE]...

Needs the experiment's tokens (refbert prepare EXP.yaml). Shards go to a temporary folder; rounds alternate, and the
medians and their ratio are printed.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from refbert_dist.artifacts import Artifact
from refbert_dist.cache.contract import stored_layers
from refbert_dist.cache.plan import plan_batches, plan_shards
from refbert_dist.cache.writer import ShardWriter, ingredients, load_teacher
from refbert_dist.config import load_experiment
from refbert_dist.data.batching import to_device, token_batch
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import device_of, inference_engine, process_group
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 5


def main() -> None:
    quiet_libraries()
    exp = load_experiment(sys.argv[1], sys.argv[2:])
    with process_group(exp.engine.timeout_s) as world, tempfile.TemporaryDirectory(dir=exp.cache.dir) as folder:
        device = device_of(world)
        tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
        teacher = load_teacher(exp, "general").to(device)
        engine = inference_engine(teacher)
        layers = stored_layers(exp)
        writer = ShardWriter(engine, teacher, tokens, exp, "general", device)
        made_from = ingredients(exp, "general", tokens)
        plans = plan_shards(tokens.lengths, exp.cache.shard_tokens)
        rates: dict[str, list[float]] = {"forward": [], "write": []}
        for number in range(ROUNDS + 1):
            plan = plans[number % len(plans)]
            count = int(tokens.lengths[plan.start : plan.stop].sum())
            start = time.perf_counter()
            with torch.inference_mode():
                for samples in plan_batches(tokens.lengths, plan, exp.cache.batch_tokens):
                    engine(**to_device(token_batch(tokens, samples, teacher.pad_token_id), device), layers=layers)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            middle = time.perf_counter()
            artifact = Artifact(Path(folder) / str(number))
            writer.commit(artifact, plan, list(writer.batches(plan)), made_from)
            end = time.perf_counter()
            if number:  # the first round warms up
                rates["forward"].append(count / (middle - start))
                rates["write"].append(count / (end - middle))
    for name, found in rates.items():
        print(f"{name:7} {statistics.median(found):9.0f} tokens/s   (min {min(found):.0f}, max {max(found):.0f})")
    ratios = sorted(write / forward for write, forward in zip(rates["write"], rates["forward"], strict=True))
    print(f"write / forward: {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
