"""What each stage takes at a place: seconds, bytes, files, memory. ``docs/scale.md`` writes the formulas out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from refbert_dist.augment.build import SHARD_ROWS
from refbert_dist.cache.codec import bytes_per_token, is_trained
from refbert_dist.cache.contract import (
    Scope,
    cache_stage,
    caches_references,
    caches_targets,
    is_cached,
    scope_part,
    scopes,
    stored_layers,
    stored_part,
    stores_logits,
    trained_scope,
    value_layer,
)
from refbert_dist.cache.models import general_student
from refbert_dist.config import Experiment, OptimConfig, Stage, SystemName
from refbert_dist.costs.augment import augment_cost
from refbert_dist.costs.cost import Place, StageCost, total
from refbert_dist.costs.extents import Extent
from refbert_dist.costs.lengths import Lengths
from refbert_dist.costs.lookup import bm25_cost, dense_cost
from refbert_dist.costs.work import (
    Shape,
    Work,
    forward,
    losses,
    masked_language,
    reading,
    remembering,
    student_shape,
    teacher_shape,
)
from refbert_dist.data.tasks import task_spec
from refbert_dist.data.tokens import SHARD_FACTOR, Part, longest
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.locate import teacher_info
from refbert_dist.references.lookup import SHARD_QUERIES
from refbert_dist.references.neighbours import looked_up_parts, pool_part

__all__ = ["Place", "StageCost", "stage_costs"]

TOKEN_BYTES = 7.2
"""A prepared token on disk: id, type, its share of offsets and of the compressed text."""
NEIGHBOUR_BYTES = 12
"""A neighbour: its number and its score."""
TOKEN_FILES, ARRAY_FILES = 3, 2
"""Files of a shard of tokens (arrays, texts, sidecar), and of one of arrays alone."""


def stage_costs(exp: Experiment, found: Mapping[Part, Extent], place: Place) -> dict[str, StageCost]:
    """By name of the stage. A stage that the experiment lacks, or of whose text nothing is known, is left out."""
    costs = _Costs(exp, found, place)
    made: dict[str, StageCost] = {}
    if "corpus" in found or exp.corpus is None:
        made["prepare"] = costs.prepare()
        if exp.references.kept:
            made["retrieve"] = costs.retrieve()
    if "corpus" in found:
        if is_cached(exp):
            made["cache-general"] = costs.caches("cache-general")
        made["distill-general"] = costs.encoders(exp.distill.general, "general")
    if "augmented" in found:
        made["augment"] = costs.augment()
    if "train" in found:
        made["finetune"] = costs.finetune()
        if is_cached(exp):
            made["cache-task"] = costs.caches("cache-task")
        made["distill-task"] = costs.encoders(exp.distill.intermediate, "task") + costs.classifiers()
    return made


class _Costs:
    """Of one experiment at one place."""

    def __init__(self, exp: Experiment, found: Mapping[Part, Extent], place: Place) -> None:
        self.exp = exp
        self.found = found
        self.place = place
        self.device, self.core = place.rates.device, place.rates.core
        info = teacher_info(exp.teacher.model)
        self.teacher = teacher_shape(info)
        self.student = student_shape(exp.student, info)

    # -- text ----------------------------------------------------------------------------------------------------------

    def prepare(self) -> StageCost:
        """Tokens over the rate of a core; a file is one core's."""
        return total(self._prepared(extent) for part, extent in self.found.items() if part != "augmented")

    def _prepared(self, extent: Extent) -> StageCost:
        tokens = extent.lengths.tokens
        core_s, used = tokens / self.core.tokens_s, min(self.place.cores, extent.files)
        shards = math.ceil(tokens / (self.exp.cache.shard_tokens * SHARD_FACTOR))
        return StageCost(
            samples=extent.lengths.samples,
            tokens=tokens,
            core_s=core_s,
            wall_s=core_s / used,
            bytes=tokens * TOKEN_BYTES,
            files=TOKEN_FILES * shards,
            used=used,
        )

    def augment(self) -> StageCost:
        """Candidates of every row's words, then the copies; they are tokenised as the rows were."""
        rows, made = self.found["train"].lengths, self.found["augmented"].lengths
        cost = augment_cost(self.exp, rows, made)
        shards = math.ceil(rows.samples / SHARD_ROWS)
        used = min(self.place.processes, shards)
        core_s = cost.core_s + made.tokens / self.core.tokens_s
        device_s = self.device.forward["fp32"].seconds(cost.masked)
        return StageCost(
            samples=made.samples,
            tokens=made.tokens,
            core_s=core_s + cost.load_s * used,
            device_s=device_s,
            wall_s=core_s / used + cost.load_s + device_s / (used * self.place.threads),
            bytes=made.tokens * TOKEN_BYTES,
            files=TOKEN_FILES * shards,
            used=used,
        )

    def retrieve(self) -> StageCost:
        """Every sample is looked up in its pool; each process that does so builds the index for itself."""
        return total(
            self._looked_up(part, extent, self.found[pool_part(part)])
            for part, extent in self.found.items()
            if pool_part(part) in self.found and part in looked_up_parts(self.exp)
        )

    def _looked_up(self, part: Part, extent: Extent, pool: Extent) -> StageCost:
        references = self.exp.references
        queries, rows = extent.lengths.samples, pool.lengths.samples
        if part == "corpus":
            rows = min(rows, references.pool_samples)
        length, device_s = extent.lengths.mean, 0.0
        if references.retriever == "dense":
            cost = dense_cost(queries, rows, length, self.teacher.hidden)
            if references.dense_layer:
                work = forward(self.teacher, extent.lengths.tokens, extent.lengths.seen)
                device_s = self.device.forward["fp32"].seconds(work)
        else:
            cost = bm25_cost(queries, rows if references.retriever == "bm25" else 0, length)
        shards = math.ceil(queries / SHARD_QUERIES)
        used = min(self.place.cores, shards)
        return StageCost(
            samples=queries,
            tokens=extent.lengths.tokens,
            core_s=cost.search_s + cost.build_s * used,
            device_s=device_s,
            wall_s=cost.search_s / used + cost.build_s + device_s / self._devices,
            bytes=queries * references.kept * NEIGHBOUR_BYTES,
            files=ARRAY_FILES * shards,
            memory_bytes=cost.memory_bytes,
            used=used,
        )

    # -- teacher -------------------------------------------------------------------------------------------------------

    def caches(self, stage: str) -> StageCost:
        """All that a stage caches."""
        return total(self._cache(scope) for scope in scopes(self.exp) if cache_stage(scope) == stage)

    def _cache(self, scope: Scope) -> StageCost:
        """One forward pass of every stored sample, in whole; of its states no more is encoded than is read."""
        exp, lengths = self.exp, self.found[scope_part(scope)].lengths
        stored = stored_part(exp, scope)
        lengths = lengths.scaled(min(lengths.samples, stored["samples"] or lengths.samples))
        kept = lengths if stored["cut"] is None else lengths.cut(stored["cut"])
        layers = len(stored_layers(exp, scope))
        passes = max(1.0, lengths.tokens / exp.cache.batch_tokens)
        compute_s = self.device.forward[exp.cache.precision].seconds(
            forward(self.teacher, lengths.tokens, lengths.seen, passes)
        )
        size = kept.tokens * layers * bytes_per_token(exp.cache.codec, self.teacher.hidden)
        if stores_logits(exp, scope):
            size += 4 * kept.samples * self._labels
        shards = math.ceil(kept.tokens / exp.cache.shard_tokens)
        used = min(self.place.processes, shards)
        background_s = size / self.core.write_bytes_s + self._disk_s(size, used) + lengths.samples * self.core.sample_s
        if not self.device.is_gpu or is_trained(exp.cache.codec):
            background_s += kept.tokens * layers * self.teacher.hidden * self.core.encode_s[exp.cache.codec]
        return StageCost(
            samples=lengths.samples,
            tokens=lengths.tokens,
            device_s=self._with_background(compute_s, background_s),
            wall_s=self._with_background(compute_s, background_s) / (used * self.place.threads),
            bytes=size,
            files=ARRAY_FILES * shards,
            used=used,
        )

    def finetune(self) -> StageCost:
        """The teacher, trained on the task."""
        lengths = self.found["train"].lengths

        def pass_s(samples: int, longest: int) -> float:
            work = forward(self.teacher, samples * longest, longest)
            return self.device.training.seconds(work.with_backward()) + samples * self.core.sample_s

        whole = self._training(self.exp.finetune, lengths, self.teacher.parameters, pass_s, 0.0)
        folds = self.exp.folds()
        if not folds:
            return whole
        without = lengths.scaled(max(1, round(lengths.samples * (1 - 1 / len(folds)))))
        return total(
            [whole, *(self._training(self.exp.finetune, without, self.teacher.parameters, pass_s, 0.0) for _ in folds)]
        )

    # -- students ------------------------------------------------------------------------------------------------------

    def encoders(self, optim: OptimConfig, scope: Stage) -> StageCost:
        """Hidden states and attention: the general stage, or the task's first phase; every system.

        Controls are taken for RefBERT. Systems that start from one and the same general student make it once.
        """
        systems = self.exp.trained_systems()
        if scope == "general":
            systems = tuple({general_student(self.exp, system): system for system in systems}.values())
        return total(self._encoder(optim, scope, system) for system in systems)

    def _encoder(self, optim: OptimConfig, scope: Stage, system: SystemName) -> StageCost:
        exp, part = self.exp, scope_part(trained_scope(self.exp, scope))
        lengths = self.found[part].lengths
        if exp.distill.padding == "counted":
            lengths = lengths.filled(longest(exp, part))
        targets = _target_layers(exp, self.teacher)
        vocabulary = teacher_info(exp.teacher.model).vocab_size

        def pass_s(samples: int, longest: int) -> float:
            tokens = samples * longest
            trained, frozen = losses(exp.distill, self.student, self.teacher, tokens, longest)
            trained += forward(self.student, tokens, longest) + self._reads(system, scope, tokens, samples)
            if scope == "general" and exp.distill.weights.mlm:
                trained += masked_language(self.student, vocabulary, tokens, longest)
                trained += self._reads(system, scope, tokens, samples)
            frozen += self._teacher_beside(system, scope, samples, longest)
            if targets and not caches_targets(exp):
                frozen += forward(self.teacher, tokens, longest)
            return self._with_background(self._trained_s(trained, frozen), samples * sample_s)

        read = self._read_tokens(system, scope) + (targets * lengths.mean if caches_targets(exp) else 0.0)
        sample_s = self._sample_s(read, self._used(optim, lengths))
        weights = self.student.parameters + self._extra_weights(system, scope)
        return self._training(optim, lengths, weights, pass_s, read * self._state_bytes)

    def classifiers(self) -> StageCost:
        """Logits: the task's second phase; every system."""
        return total(self._classifier(system) for system in self.exp.trained_systems())

    def _classifier(self, system: SystemName) -> StageCost:
        exp, scope = self.exp, trained_scope(self.exp, "task") if self._labels > 1 else "task"
        lengths = self.found[scope_part(scope)].lengths

        def pass_s(samples: int, longest: int) -> float:
            tokens = samples * longest
            trained = forward(self.student, tokens, longest) + self._reads(system, "task", tokens, samples)
            frozen = self._teacher_beside(system, "task", samples, longest)
            if not caches_targets(exp) and self._labels > 1:
                frozen += forward(self.teacher, tokens, longest)
            return self._with_background(self._trained_s(trained, frozen), samples * sample_s)

        read = self._read_tokens(system, "task")
        sample_s = self._sample_s(read, self._used(exp.distill.prediction, lengths))
        weights = self.student.parameters + self._extra_weights(system, "task")
        return self._training(exp.distill.prediction, lengths, weights, pass_s, read * self._state_bytes)

    def _reads(self, system: SystemName, scope: Stage, tokens: float, samples: int) -> Work:
        """What references and memory add to the student."""
        read = self.exp.reference_count(system, scope) * self.exp.references.max_length
        found = remembering(self.student, tokens, self.exp.memory_size(system, scope))
        return found + reading(self.student, self.teacher.hidden, tokens, samples, read)

    def _teacher_beside(self, system: SystemName, scope: Stage, samples: int, longest: int) -> Work:
        """The teacher on the references themselves, where their states are not cached."""
        count = self.exp.reference_count(system, scope)
        if not count or self._stored(system, scope):
            return Work()
        return forward(self.teacher, samples * count * longest, longest)

    def _read_tokens(self, system: SystemName, scope: Stage) -> float:
        """Cached states of reference tokens that a sample reads, over all layers."""
        references, count = self.exp.references, self.exp.reference_count(system, scope)
        if not count or not self._stored(system, scope):
            return 0.0
        layers = len({references.key_layer, value_layer(self.exp)} - {0})
        return float(count * references.max_length * layers)

    def _stored(self, system: SystemName, scope: Stage) -> bool:
        """Whether states of what ``system`` reads are cached; edited copies and parts of inputs are in no cache."""
        return caches_references(self.exp) and (system != "own" or self.exp.references.own_is_input(scope))

    @property
    def _state_bytes(self) -> float:
        return bytes_per_token(self.exp.cache.codec, self.teacher.hidden)

    def _sample_s(self, states: float, readers: int) -> float:
        """Core seconds to have a sample ready that reads so many cached states, as ``readers`` processes do."""
        decode_s = states * self.teacher.hidden * self.core.decode_s[self.exp.cache.codec]
        return self.core.sample_s + decode_s + self._disk_s(states * self._state_bytes, readers)

    def _disk_s(self, size: float, users: int) -> float:
        """What waits for a disk that nodes share; on one machine the cache lies in memory."""
        rate = min(self.core.disk_bytes_s, self.core.disk_total_bytes_s / users)
        return size / rate if self.device.is_gpu else 0.0

    def _extra_weights(self, system: SystemName, scope: Stage) -> int:
        """Of the maps from the teacher's width (keys and values) and to it (hidden losses)."""
        maps = 1 if self.exp.distill.projection == "shared" else self.student.layers + 1
        if self.exp.reference_count(system, scope):
            maps += 1 if self.exp.references.tie_projections else 2
        return maps * self.student.hidden * self.teacher.hidden

    def _trained_s(self, trained: Work, frozen: Work) -> float:
        return self.device.training.seconds(trained.with_backward()) + self.device.forward["fp32"].seconds(frozen)

    # -- all training --------------------------------------------------------------------------------------------------

    def _training(
        self,
        optim: OptimConfig,
        lengths: Lengths,
        weights: int,
        pass_s: Callable[[int, int], float],
        sample_bytes: float,
    ) -> StageCost:
        """All steps of a job. ``pass_s(samples, longest)`` gives the device seconds of one micro-batch."""
        batch, micro = min(optim.batch_size, lengths.samples), self.exp.engine.micro_batch_size
        padded, steps = lengths.padded(batch, micro), optim.steps_taken(lengths.samples)
        processes, used = self.place.processes, self._used(optim, lengths)
        fixed_s = self.device.pass_s + weights * self.device.parameter_s
        # Samples are sorted by length, so the last micro-batch of each round is its longest, and all wait for it.
        rounds = [padded[min(start + processes, len(padded)) - 1] for start in range(0, len(padded), processes)]
        step_s = sum(pass_s(min(micro, batch), longest) + fixed_s for longest in rounds) / self.place.threads
        step_s += weights * self.device.optimizer_s / self.place.threads
        if processes > 1:
            step_s += 4 * weights / self.device.reduced_bytes_s
        return StageCost(
            samples=steps * batch,
            tokens=steps * batch * lengths.mean,
            device_s=steps * step_s * used * self.place.threads,
            wall_s=steps * step_s,
            read_bytes_s=sample_bytes * batch / used / step_s,
            used=used,
        )

    def _used(self, optim: OptimConfig, lengths: Lengths) -> int:
        """Processes for which a step has a micro-batch."""
        batch = min(optim.batch_size, lengths.samples)
        return min(self.place.processes, math.ceil(batch / self.exp.engine.micro_batch_size))

    def _with_background(self, compute_s: float, background_s: float) -> float:
        """A GPU computes while cores encode and decode; where the device is a core, it does both."""
        return max(compute_s, background_s) if self.device.is_gpu else compute_s + background_s

    @property
    def _devices(self) -> int:
        return self.place.processes * self.place.threads

    @property
    def _labels(self) -> int:
        assert self.exp.task
        return task_spec(self.exp.task.name).num_labels


def _target_layers(exp: Experiment, teacher: Shape) -> int:
    """Teacher layers above 0 that the losses compare with."""
    mapped = layer_map(exp.distill.layer_map, exp.student.layers, teacher.layers)
    layers = set(mapped) if exp.distill.weights.hidden else set()
    if exp.distill.weights.attention:
        layers |= {layer - 1 for layer in mapped}
    return len(layers - {0})
