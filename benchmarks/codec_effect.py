"""What a codec of the teacher cache does to a distilled student: the same experiment, seeds and budget for each.

    python benchmarks/codec_effect.py EXP.yaml [FIELD=VALUE]...

Runs the experiment once with the teacher online and once for each codec, each in a run directory of its own beside
run.dir (EXP-online, EXP-fp16, ...); what is finished is not run again. Prints the dev scores of every system, and how
far its states after the task's first phase are from the *uncompressed* teacher's (the losses of that phase, on the dev
rows): the quieter of the two measures.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from refbert_dist import pipeline
from refbert_dist.artifacts import read_json
from refbert_dist.cache.states import OnlineStates
from refbert_dist.config import Experiment, load_experiment
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.stages.distill import Setting
from refbert_dist.stages.students import load_encoder, load_projections, model_folder
from refbert_dist.tracking.quiet import quiet_libraries

CODECS = ("fp16", "int8", "int4", "pq")
CPU = torch.device("cpu")
BATCH = 32


def variant(name: str) -> Experiment:
    own = ["distill.targets=online", "references.states=online"] if name == "online" else [f"cache.codec={name}"]
    exp = load_experiment(sys.argv[1], [*sys.argv[2:], *own])
    return load_experiment(sys.argv[1], [*sys.argv[2:], *own, f"run.dir={Path(f'{exp.run.dir}-{name}')}"])


def losses(exp: Experiment, system: str) -> dict[str, float]:
    """Losses of the first phase against the uncompressed fine-tuned teacher, over all dev rows."""
    setting = Setting(exp, "task", CPU)
    dev = TokenSet.open(tokens_artifact(exp, "dev"))
    folder = model_folder(exp, f"intermediate-{system}")
    objective = EncoderObjective(
        load_encoder(folder).eval(),
        setting.teacher,
        dev,
        OnlineStates(setting.teacher, dev, CPU),
        setting.references(system, "dev"),  # type: ignore[arg-type]
        exp.distill,
    )
    load_projections(folder, objective.module.projections)
    sums: dict[str, float] = dict.fromkeys(objective.weights, 0.0)
    module = objective.module.eval()
    for start in range(0, len(dev), BATCH):
        with torch.no_grad():
            terms = module(**objective.batch(np.arange(start, min(start + BATCH, len(dev))), CPU))
        for name, value in terms.items():
            sums[name] += float(value)
    counts = objective.denominators(np.arange(len(dev)))
    return {name: value / counts[name] for name, value in sums.items()}


def main() -> None:
    quiet_libraries()
    lines = []
    for name in ("online", *CODECS):
        exp = variant(name)
        print(f"{name}: {exp.run.dir}", flush=True)
        pipeline.run(exp, ["evaluate"])
        scores = read_json(exp.run.dir / "results.json")
        for system in exp.trained_systems():
            found = {row["metric"]: row["score"] for row in scores if row["system"] == system}
            numbers = found | losses(exp, system)
            lines.append(f"{name:8} {system:9} " + "  ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
