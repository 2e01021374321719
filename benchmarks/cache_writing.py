"""Writing the teacher cache against the bare forward of the same batches, and against a padded transformers loop.

    python benchmarks/cache_writing.py EXP.yaml [FIELD=VALUE]...

Needs the experiment's tokens (refbert prepare EXP.yaml). In every round each way takes the same shards in turn, in one
process; medians and ratios are printed. Shards go to a temporary folder of cache.dir.

forward   the batches of our plan through the wrapped teacher; what it says is dropped
write     the same, with encoding, writing, hashing and committing: what refbert cache build does
padded    transformers alone: samples in the order of the corpus, padded to corpus.max_length, dropped
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from refbert_dist.artifacts import Artifact
from refbert_dist.cache.codec import is_trained
from refbert_dist.cache.contract import cache_plan, stored_layers
from refbert_dist.cache.forward import TeacherForward, load_teacher
from refbert_dist.cache.plan import CachePlan, ShardPlan
from refbert_dist.cache.shard_writer import ShardWriter, open_codecs
from refbert_dist.config import load_experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.engine.distributed import device_of, process_group
from refbert_dist.engine.world import World
from refbert_dist.models.locate import resolve_model
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 7
SHARDS = 3
"""Shards in a round: while one is committed, the next is computed."""


def padded_loop(spec: str, tokens: TokenSet, length: int, batch: int, device: torch.device) -> Callable[..., None]:
    model = AutoModel.from_pretrained(resolve_model(spec)).to(device).eval()

    def run(plan: CachePlan, shards: list[ShardPlan]) -> None:
        for start in range(shards[0].start, shards[-1].stop, batch):
            samples = plan.rows[start : min(start + batch, shards[-1].stop)]
            ids = np.zeros((len(samples), length), np.int64)
            mask = np.zeros((len(samples), length), np.int64)
            for row, sample in enumerate(samples.tolist()):
                found = tokens.ids(sample)
                ids[row, : len(found)], mask[row, : len(found)] = found, 1
            with torch.inference_mode():
                model(
                    input_ids=torch.from_numpy(ids).to(device),
                    attention_mask=torch.from_numpy(mask).to(device),
                    output_hidden_states=True,
                )

    return run


def main() -> None:
    quiet_libraries()
    exp = load_experiment(sys.argv[1], sys.argv[2:])
    assert exp.corpus is not None
    if is_trained(exp.cache.codec):
        sys.exit("a trained codec needs its codebook first; take fp16, int8 or int4")
    with process_group(exp.engine.timeout_s), tempfile.TemporaryDirectory(dir=exp.cache.dir) as folder:
        world = World(0, 1, 0)
        tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
        plan = cache_plan(exp, "general", tokens.lengths)
        teacher = load_teacher(exp, "general")
        forward = TeacherForward(teacher, tokens, plan, stored_layers(exp), False, exp, world)
        codecs = open_codecs(Artifact(Path(folder)), exp.cache.codec, forward.layers, teacher.hidden_size)
        length = exp.corpus.max_length
        padded = padded_loop(
            exp.teacher.model, tokens, length, max(1, exp.cache.batch_tokens // length), device_of(world)
        )

        def bare(plan: CachePlan, shards: list[ShardPlan]) -> None:
            for shard in shards:
                for rows in plan.batches(shard, exp.cache.batch_tokens):
                    forward(rows)

        def write(plan: CachePlan, shards: list[ShardPlan]) -> None:
            with ShardWriter(Artifact(Path(folder) / str(time.time_ns())), plan, codecs, {}) as writer:
                for shard in shards:
                    opened = writer.open(shard)
                    for rows in plan.batches(shard, exp.cache.batch_tokens):
                        writer.add(opened, rows, forward(rows))
                    writer.commit(opened)
                writer.drain()

        ways: dict[str, Callable[[CachePlan, list[ShardPlan]], None]] = {
            "forward": bare,
            "write": write,
            "padded": padded,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            first = number * SHARDS % max(1, len(plan.shards) - SHARDS)
            shards = plan.shards[first : first + SHARDS]
            count = int(plan.lengths[shards[0].start : shards[-1].stop].sum())
            for name, way in ways.items():
                start = time.perf_counter()
                way(plan, shards)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if number:  # the first round warms up
                    rates[name].append(count / (time.perf_counter() - start))
    print(
        f"{len(tokens)} samples of {tokens.lengths.mean():.1f} tokens on average, {exp.cache.codec}, layers "
        f"{', '.join(map(str, forward.layers))}, {torch.get_num_threads()} threads, {ROUNDS} rounds"
    )
    for name, found in rates.items():
        print(f"{name:8} {statistics.median(found):9.0f} tokens/s   (min {min(found):.0f}, max {max(found):.0f})")
    for other in ("forward", "padded"):
        ratios = sorted(ours / theirs for ours, theirs in zip(rates["write"], rates[other], strict=True))
        print(f"write / {other}: {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
