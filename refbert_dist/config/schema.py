"""The experiment: one frozen, typed description that every stage reads its section of.

Nothing here touches torch, the network or the teacher's weights, so that ``--help`` and ``--dry-run`` stay quick on a
login node. What can only be known from the teacher or the data is checked by :mod:`refbert_dist.preflight`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from refbert_dist.config.benchmark import BenchmarkConfig
from refbert_dist.config.distill import DistillConfig, OptimConfig, Stage
from refbert_dist.config.references import ReferencesConfig
from refbert_dist.config.section import NonNegative as NonNegative
from refbert_dist.config.section import Positive as Positive
from refbert_dist.config.section import Rate
from refbert_dist.config.section import Section as Section
from refbert_dist.config.systems import EXPORTED, FOLDS, SYSTEMS, SystemName
from refbert_dist.config.task import TaskConfig


class RunConfig(Section):
    dir: Path = Path("runs/experiment")
    """Run directory: resolved config, provenance, metrics, checkpoints, results and the exported model."""


class CacheConfig(Section):
    dir: Path = Path("runs/cache")
    """Cache directory, shared by all runs: tokens, neighbours, fine-tuned teachers and teacher states."""
    layers: Literal["auto", "all"] | tuple[NonNegative, ...] = "auto"
    """Teacher layers to store (1 = first layer's output). ``auto``: what this experiment's losses and references read;
    ``all``: every layer, so that students of any depth share one cache."""
    shard_tokens: Positive = 131072
    """Tokens in one shard, the unit that is computed, committed, verified and repaired."""
    batch_tokens: Positive = 8192
    """Tokens (padding included) in one forward pass of the teacher."""
    codec: Literal["fp16", "int8", "int4", "pq"] = "fp16"
    """How a state is stored; bytes a token and layer at width 768: ``fp16`` 1536, ``int8`` 772, ``int4`` 408, ``pq``
    100 at most (product quantisation, needs faiss)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format in which the teacher computes the states."""
    group_processes: Positive = 1
    """Processes that hold one teacher together (ZeRO-3), for a teacher larger than a device."""
    staging_dir: Path | None = None
    """Node-local folder to which shards are copied before they are read at random; ``null`` reads them in place."""
    staging_gb: Rate = 100.0
    """Room in ``staging_dir``; the shards that were not read for longest make way."""


class TeacherConfig(Section):
    model: str
    """Folder or hub name of a BERT-like encoder, or ``package:NAME[/FOLDER]`` for one shipped in a Python package."""
    head: Literal["bert", "tinybert"] = "bert"
    """What classifies the pooled output, in the fine-tuned teacher and in its students: a linear layer behind dropout,
    or behind ReLU without dropout (TinyBERT's code; needs a teacher of type bert)."""


class CorpusConfig(Section):
    path: str
    """Text for general distillation: a file or folder (``.txt``, ``.jsonl``, ``.parquet``, each also ``.gz`` where it
    makes sense), a ``datasets`` hub name, or ``builtin:python-docs``. In plain text a blank line ends a document."""
    format: Literal["auto", "text", "jsonl", "parquet", "hub", "builtin"] = "auto"
    """How to read ``path``; ``auto`` goes by its form and file ending."""
    text_column: str = "text"
    """Column that holds a document in JSONL, Parquet and hub data."""
    split: str = "train"
    """Split of a hub data set."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens in a sample at most, [CLS] and [SEP] included."""
    min_length: Annotated[int, Field(ge=3)] = 8
    """Samples shorter than this many tokens are dropped and counted."""
    max_documents: Positive | None = None
    """Read only the first documents; ``null`` reads all."""
    expected_tokens: Positive | None = None
    """Tokens that the corpus is expected to have: sizes a plan until they have been counted; changes nothing else."""


class StudentConfig(Section):
    layers: Positive = 4
    """Transformer layers."""
    hidden: Positive = 312
    """Width of the hidden states."""
    heads: Positive = 12
    """Attention heads; must divide ``hidden``."""
    intermediate: Positive = 1200
    """Width of the feed-forward layer."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout probability of hidden states and attention."""
    init: str = "random"
    """Where the weights start: ``random``; ``teacher`` (its embeddings and mapped layers, for a student of its width
    and heads; feed-forward layers of another width start at random); or a folder, hub name or ``package:NAME`` of a
    BERT-like checkpoint of the student's shape. What reads references always starts at random."""

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> StudentConfig:
        if self.hidden % self.heads:
            below = self.hidden // self.heads * self.heads
            nearest = below if below and self.hidden - below <= self.heads / 2 else below + self.heads
            raise ValueError(
                f"student.hidden is {self.hidden}, which {self.heads} heads do not divide; "
                f"set student.hidden={nearest} or another student.heads"
            )
        return self


class EngineConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is spread over the processes. 0 nothing, 1 moments, 2 gradients too, 3 weights too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format in which layers compute; weights, their gradients, moments and losses are fp32 in both."""
    micro_batch_size: Positive = 8
    """Samples in one forward and backward pass of a process; fixed, so that results do not depend on their number."""
    gradient_clipping: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest gradient norm; 0 does not clip."""
    optimizer: Literal["adamw", "bert_adam"] = "adamw"
    """AdamW, which corrects the bias of its moments and clips all gradients together; or BERT's Adam (TinyBERT's code),
    which corrects nothing, clips each tensor for itself, and needs ``zero_stage: 0``."""
    shuffle_window: Positive | None = None
    """Samples that are shuffled among each other, so that a large cache is read in runs; ``null`` shuffles all."""
    prefetch_batches: NonNegative = 2
    """Micro-batches that are read and decoded ahead in the background."""
    checkpoint_steps: Positive = 200
    """Optimizer steps between two checkpoints, which are written in the background."""
    keep_checkpoints: Positive = 2
    """Complete checkpoints kept while a training job goes on; of a finished one the last is kept."""
    max_skipped_steps: Positive = 5
    """Steps in a row that may be skipped because a loss or gradient is not finite; then the job ends."""
    timeout_s: Positive = 600
    """Seconds a collective operation may take before the job is ended."""
    compile: bool = False
    """Compile the trained module (``torch.compile``; needs a C++ compiler, on a GPU Triton): slow to start, then
    faster."""
    profile: bool = False
    """Report where the time of training steps goes, and trace a few, into ``RUN_DIR/profile/``."""

    @model_validator(mode="after")
    def _optimizer_has_its_stage(self) -> EngineConfig:
        if self.optimizer == "bert_adam" and self.zero_stage:
            raise ValueError(
                f"engine.optimizer is 'bert_adam' but engine.zero_stage is {self.zero_stage}, where no process holds "
                "whole gradients; set engine.zero_stage=0 or engine.optimizer=adamw"
            )
        return self


class LaunchConfig(Section):
    processes: Positive = 1
    """Processes on this machine."""
    threads: Positive | None = None
    """CPU threads of each process; ``null`` shares the cores evenly."""


class TrackingConfig(Section):
    mlflow: bool = True
    """Copy metrics, parameters and small artefacts to MLflow."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; ``null`` is a SQLite file in the run directory."""
    experiment: str = "refbert"
    """MLflow experiment name."""
    register_model: str | None = None
    """Name in MLflow's registry under which the exported model becomes a version, once for each run; ``null`` does not
    send the model."""
    log_steps: Positive = 10
    """Optimizer steps between two records in metrics.jsonl."""

    @model_validator(mode="after")
    def _name_can_be_registered(self) -> TrackingConfig:
        if self.register_model is not None and not re.fullmatch(r"[\w.-][\w. -]*", self.register_model):
            raise ValueError(
                f"tracking.register_model is '{self.register_model}', which cannot name a model in MLflow's registry; "
                "use letters, digits, '-', '_' and '.'"
            )
        return self


class EvaluateConfig(Section):
    batch_size: Positive = 32
    """Samples in one forward pass."""
    latency_batch_size: Positive = 8
    """Samples in one timed forward pass."""
    latency_repeats: NonNegative = 15
    """Timed passes of each system, interleaved; the median counts. 0 times nothing."""


class ExportConfig(Section):
    bank_codec: Literal["fp16", "int8"] = "fp16"
    """How the references' projected keys and values are stored; int8 takes half the space of fp16."""
    bank_texts: bool = True
    """Ship the references' texts. Without them a text is still kept from reading itself, but may read one that contains
    it, and references can be neither shown nor added and removed later."""
    onnx: bool = False
    """Also write ``model.onnx``, and with dynamic int8 quantisation ``model.int8.onnx``."""


class Experiment(Section):
    """Everything one experiment needs; see ``configs/demo.yaml`` for a complete file."""

    seed: NonNegative = 0
    """Seed of every random choice."""
    run: RunConfig = RunConfig()
    """Where this run writes."""
    cache: CacheConfig = CacheConfig()
    """Where shared artefacts lie, and how teacher states are stored."""
    teacher: TeacherConfig
    """The model to compress."""
    corpus: CorpusConfig | None = None
    """Text of the general stage; ``null`` skips that stage."""
    task: TaskConfig | None = None
    """Labelled task; ``null`` ends after the general stage."""
    student: StudentConfig = StudentConfig()
    """Shape of the student."""
    references: ReferencesConfig = ReferencesConfig()
    """What the student's first layer reads beside its input."""
    systems: tuple[SystemName, ...] = ("refbert", "tinybert")
    """Students to train at equal budget; the first is exported. ``tinybert`` is the same student without references;
    the others are controls, which read something else in their place: ``random``, ``shuffled`` (another input's),
    ``same`` (the same rows for all inputs), ``noise`` (random numbers for their states), ``zeros``, ``student`` (the
    student's states of them), ``crossfit`` (states by teachers that were not fine-tuned on them), ``own`` (the
    teacher's of the input itself), ``label`` and ``shuffled-labels`` (labels alone)."""
    finetune: OptimConfig = OptimConfig(epochs=3, learning_rate=3e-5)
    """Fine-tuning of the teacher on the task."""
    distill: DistillConfig = DistillConfig()
    """Losses and optimisation of the student."""
    engine: EngineConfig = EngineConfig()
    """The training engine."""
    launch: LaunchConfig = LaunchConfig()
    """Processes and threads."""
    tracking: TrackingConfig = TrackingConfig()
    """Metrics and MLflow."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Scoring and timing."""
    export: ExportConfig = ExportConfig()
    """The model folder."""
    benchmark: BenchmarkConfig | None = None
    """What ``refbert benchmark`` measures; ``null`` takes its defaults."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Experiment:
        if self.corpus is None and self.task is None:
            raise ValueError("corpus and task are both missing; give at least one of the two sections")
        if self.benchmark and self.corpus is None:
            raise ValueError(
                "corpus is missing, which benchmark takes its texts from; set corpus.path, to "
                "builtin:python-docs for one"
            )
        if not self.systems or len(set(self.systems)) != len(self.systems):
            raise ValueError(
                f"systems is {list(self.systems)}; name each of {', '.join(SYSTEMS)} at most once, and one at least"
            )
        if self.systems[0] not in EXPORTED:
            raise ValueError(
                f"systems begins with '{self.systems[0]}', but the first one is exported, and this is a control; put "
                "refbert or tinybert first"
            )
        if "crossfit" in self.systems and (self.task is None or self.references.states == "online"):
            raise ValueError(
                f"systems has 'crossfit', which reads cached states of a task's rows, but task is "
                f"{'given' if self.task else 'missing'} and references.states is '{self.references.states}'; set "
                "references.states=cache and a task, or take crossfit out"
            )
        if self.references.stages == "task" and self.task is None:
            raise ValueError(
                "references.stages is 'task' but there is no task; set references.stages=both or add the task section"
            )
        if self.references.label != "none" and self.task is None:
            raise ValueError(
                f"references.label is '{self.references.label}' but there is no task whose labels could be read; set "
                "references.label=none or add the task section"
            )
        of_task = [f"systems has '{name}'" for name in self.systems if SYSTEMS[name].of_task]
        if self.references.label != "none":
            of_task.append(f"references.label is '{self.references.label}'")
        if self.references.stages == "general" and of_task:
            raise ValueError(
                f"{of_task[0]}, which is of a task's rows, but references.stages is 'general', so that nothing is read "
                "there; set references.stages=both or task, or take it away"
            )
        if isinstance(self.distill.layer_map, tuple) and len(self.distill.layer_map) != self.student.layers:
            raise ValueError(
                f"distill.layer_map names {len(self.distill.layer_map)} teacher layers but student.layers is "
                f"{self.student.layers}; give one teacher layer for each student layer"
            )
        return self

    def trained_systems(self) -> tuple[SystemName, ...]:
        """The students to train: those that would be another one without references are not trained twice."""
        if self.references.count:
            return self.systems
        alone: tuple[SystemName, ...] = ("refbert", "tinybert") if self.references.memory else ("tinybert",)
        return tuple(name for name in alone if name in self.systems) or alone[:1]

    def reference_count(self, system: SystemName, stage: Stage = "task") -> int:
        """References that ``system`` reads for each input in a stage."""
        return self.references.count if self._has_references(system, stage) else 0

    def memory_size(self, system: SystemName, stage: Stage = "task") -> int:
        """Learned states that ``system`` reads beside its references in a stage."""
        return self.references.memory if self._has_references(system, stage) else 0

    def reads(self, system: SystemName, stage: Stage = "task") -> bool:
        """Whether ``system`` is more than TinyBERT in a stage."""
        return self.reference_count(system, stage) + self.memory_size(system, stage) > 0

    def _has_references(self, system: SystemName, stage: Stage) -> bool:
        """Whether the settings of references are about ``system`` in a stage."""
        return system != "tinybert" and self.references.stages in ("both", stage)

    def reads_labels(self, system: SystemName) -> bool:
        """Whether ``system`` reads the labels of references in the task stage."""
        return self.reference_count(system) > 0 and (self.references.label != "none" or not SYSTEMS[system].reads_text)

    def folds(self) -> tuple[int, ...]:
        """Parts of the training rows without which a teacher is fine-tuned, for ``crossfit``."""
        return tuple(range(FOLDS)) if self.task and "crossfit" in self.trained_systems() else ()

    def student_seed(self, stage: Stage) -> int:
        """Seed of the students of a stage."""
        return self.seed if stage == "general" or self.distill.seed is None else self.distill.seed
