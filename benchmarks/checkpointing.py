"""What saving costs the training of a student: copied and written in the background, against written in the loop.

    python benchmarks/checkpointing.py [FOLDER]

A student of 4 layers x 312 with BERT's vocabulary and random weights, one process; checkpoints go to a temporary folder
in FOLDER (the system's by default). In every round each way takes the same training steps; two of them save first.

stall     the loop stands still
CPU       processor time of a round, all threads, beyond that of one that saves nothing: what saving may take away where
          the writing thread has no core of its own
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from refbert_dist.config import EngineConfig, OptimConfig
from refbert_dist.engine.checkpoint import TrainState, complete_checkpoints
from refbert_dist.engine.distributed import device_of, process_group, training_engine
from refbert_dist.engine.saving import Saver
from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel
from refbert_dist.tracking.quiet import quiet_libraries

ROUNDS = 15
STEPS = 8
"""Steps in a round, so many that the writing ends before them."""
PERIOD_S = 60.0
WAYS = ("none", "background", "blocking")


def main() -> None:
    quiet_libraries()
    config = EngineConfig()
    shape = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
    stall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    writing: list[float] = []
    steps_s: list[float] = []
    with process_group(config.timeout_s) as world, tempfile.TemporaryDirectory(dir=(*sys.argv[1:], None)[0]) as folder:
        device = device_of(world)
        ids = torch.randint(1000, 30000, (8, 64), device=device)
        module = RefBertModel(RefBertConfig(**shape)).to(device)
        engine = training_engine(module, OptimConfig(steps=1), config, 1)

        def train(steps: int) -> None:
            for _ in range(steps):
                engine.backward(engine(input_ids=ids).last_hidden_state.square().mean())
                engine.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        with Saver(Path(folder), config, world) as saver:
            saver.restore(engine)
            train(1)
            for number in range(ROUNDS + 1):
                for way in WAYS:
                    start, used = time.perf_counter(), time.process_time()
                    if way != "none":
                        saver.save(engine, TrainState(number + 1), keep=2)
                    copied = time.perf_counter()
                    if way == "blocking":
                        saver.wait()
                    free = time.perf_counter()
                    train(STEPS)
                    trained = time.perf_counter()
                    saver.wait()
                    if number:  # the first round warms up
                        stall[way].append(free - start)
                        cpu[way].append(time.process_time() - used)
                        steps_s.append((trained - free) / STEPS)
                        writing += [free - copied] if way == "blocking" else []
            size = sum(path.stat().st_size for path in complete_checkpoints(Path(folder))[-1].iterdir())
    print(
        f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M weights, {size / 1e6:.0f} MB a checkpoint, "
        f"{torch.get_num_threads()} threads, {ROUNDS} rounds of {STEPS} steps of "
        f"{statistics.median(steps_s) * 1e3:.0f} ms"
    )
    print(f"writing     {_spread(writing)}")
    for way in WAYS[1:]:
        more = [with_it - without for with_it, without in zip(cpu[way], cpu["none"], strict=True)]
        shares = [f"{statistics.median(found) / PERIOD_S:.2%}" for found in (stall[way], more)]
        print(f"{way:11} stall {_spread(stall[way])}, CPU {_spread(more)}")
        print(f"{'':11} at one saving in {PERIOD_S:.0f} s: stall {shares[0]}, CPU {shares[1]}")
    ratios = [theirs / ours for ours, theirs in zip(stall["background"], stall["blocking"], strict=True)]
    print(
        f"stall, blocking / background: {statistics.median(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f})"
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ms (min {min(seconds) * 1e3:.0f}, max {max(seconds) * 1e3:.0f})"


if __name__ == "__main__":
    main()
