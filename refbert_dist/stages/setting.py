"""What the students of one scope learn from and are scored with: tokens, teacher, its states, and references."""

from __future__ import annotations

import numpy as np
import torch

from refbert_dist.cache.contract import (
    caches_references,
    caches_targets,
    fold_scope,
    scope_part,
    trained_scope,
    value_layer,
)
from refbert_dist.cache.forward import load_teacher
from refbert_dist.cache.states import FoldedStates, OnlineStates, TeacherStates, open_cache, open_states
from refbert_dist.config import SYSTEMS, Experiment, Stage, SystemName
from refbert_dist.data.folds import row_folds, row_groups
from refbert_dist.data.pool import pool_rows
from refbert_dist.data.tasks import TaskSpec, task_spec
from refbert_dist.data.tokens import Part, TokenSet, tokens_artifact
from refbert_dist.models.teacher import Teacher
from refbert_dist.references.edits import EditedTokens
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact, pool_part
from refbert_dist.references.pair_texts import PairTexts
from refbert_dist.references.sources import Neighbours, Noise, Source, Unread, Zeros, dealt_rows, drawn_rows, same_rows
from refbert_dist.references.states import LabelStates, ReferenceStates, gold_labels, taught_labels

LOGITS_AT_ONCE = 256
"""Pool rows of which the teacher's answers are fetched together."""


class Setting:
    """Of one stage; references of any of its parts come from its pool."""

    def __init__(self, exp: Experiment, scope: Stage, device: torch.device) -> None:
        self.exp = exp
        self.device = device
        self.tokens = TokenSet.open(tokens_artifact(exp, scope_part(scope)))
        """The pool that references come from."""
        self.part: Part = scope_part(trained_scope(exp, scope))
        """What students are trained on: the pool itself or, with augmentation, its rows and their copies."""
        self.trained = TokenSet.open(tokens_artifact(exp, self.part))
        self.teacher: Teacher = load_teacher(exp, scope).to(device).eval().requires_grad_(False)
        self.states: TeacherStates = open_states(exp, trained_scope(exp, scope), "targets", self.teacher, device)
        """Of what students are trained on."""
        self.scope: Stage = scope

    def references(self, system: SystemName, part: Part) -> Source | None:
        """What ``system`` reads beside the samples of ``part``; None where it reads nothing."""
        count = self.exp.reference_count(system, self.scope)
        if count == 0:
            return None
        if system == "own":
            return self._own(part)
        if self.scope == "general" and SYSTEMS[system].of_task:
            system = "refbert"
        rows = self._rows(system, part, count)
        if not SYSTEMS[system].reads_text:
            return Neighbours(rows, LabelStates(self._gold_labels(), self.teacher.hidden_size, self.device))
        if system == "student":
            length, pad_id = self.exp.references.max_length, self.teacher.pad_token_id
            return Unread(rows, self.tokens, length, pad_id, self.device)
        source = Neighbours(rows, self.reference_states(crossfit=system == "crossfit"))
        if system == "noise":
            return Noise(source, self.exp.student_seed(self.scope))
        return Zeros(source) if system == "zeros" else source

    def reference_states(self, crossfit: bool = False) -> ReferenceStates:
        """States of pool rows as RefBERT reads them; with ``crossfit`` by teachers that were not fine-tuned on them.

        Embedding outputs are the teacher's in any case.
        """
        states = self._crossfit_states() if crossfit else self._stored_references()
        labels = None
        if self.scope == "task" and self.exp.references.label != "none":
            labels = self._gold_labels() if self.exp.references.label == "gold" else self._taught_labels(states)
        return self._reading(self.tokens, states, self.exp.references.max_length, labels)

    def _reading(
        self, pool: TokenSet, states: TeacherStates, max_length: int, labels: np.ndarray | None = None
    ) -> ReferenceStates:
        return ReferenceStates(
            pool,
            states,
            self.teacher,
            key_layer=self.exp.references.key_layer,
            value_layer=value_layer(self.exp),
            max_length=max_length,
            device=self.device,
            labels=labels,
        )

    def _own(self, part: Part) -> Source:
        """Each sample's own states, of an edited copy, or of its texts; the teacher's anew where no cache has them."""
        tokens, read = TokenSet.open(tokens_artifact(self.exp, part)), self.exp.references
        rows = np.arange(len(tokens))[:, None]
        stored = part == self.part and caches_targets(self.exp) and caches_references(self.exp)
        if not read.own_is_input(self.scope):
            stored = False
            if read.own_edits:
                tokens = EditedTokens(tokens, read.own_edits, self.exp.student_seed(self.scope))
            else:
                tokens = PairTexts(tokens)
                rows = 2 * rows + np.array([0, 1])
        states = self.states if stored else OnlineStates(self.teacher, tokens, self.device)
        return Neighbours(rows, self._reading(tokens, states, int(tokens.lengths.max())))

    def _rows(self, system: SystemName, part: Part, count: int) -> np.ndarray:
        """Pool rows that ``system`` reads, int64 ``[N, count]``."""
        table = NeighbourTable.open(neighbours_artifact(self.exp, part))
        rows = table.prefix(count)
        if system not in ("random", "shuffled", "same", "noise", "shuffled-labels"):
            return rows
        pool, own = self._groups(self.tokens), np.full(len(rows), -1)
        if part in (pool_part(part), "augmented"):
            own = self._groups(TokenSet.open(tokens_artifact(self.exp, part)))
        seed = self.exp.student_seed(self.scope)
        if system == "shuffled":
            return dealt_rows(rows, own, pool, seed)
        cap = self.exp.references.pool_samples if self.scope == "general" else len(pool)
        draw = same_rows if system in ("same", "noise") else drawn_rows
        return draw(rows, own, pool, np.setdiff1d(pool_rows(len(pool), cap), table.left_out), seed)

    def _groups(self, tokens: TokenSet) -> np.ndarray:
        return tokens.documents if self.scope == "general" else row_groups(self.exp, tokens)

    def _stored_references(self) -> TeacherStates:
        return open_states(self.exp, self.scope, "references", self.teacher, self.device)

    def _crossfit_states(self) -> TeacherStates:
        width = self.teacher.hidden_size
        states = [open_cache(self.exp, fold_scope(fold), self.tokens, width) for fold in self.exp.folds()]
        return FoldedStates(states, row_folds(self.exp, self.tokens))

    def _gold_labels(self) -> np.ndarray:
        assert self.tokens.labels is not None
        return gold_labels(self.tokens.labels, self._spec.num_labels, self._spec.label_range[1])

    def _taught_labels(self, states: TeacherStates) -> np.ndarray:
        starts = range(0, len(self.tokens), LOGITS_AT_ONCE)
        rows = [np.arange(start, min(start + LOGITS_AT_ONCE, len(self.tokens))) for start in starts]
        answers = torch.from_numpy(np.concatenate([states.logits(some) for some in rows]))
        return taught_labels(answers, self._spec.label_range[1])

    @property
    def _spec(self) -> TaskSpec:
        assert self.exp.task is not None
        return task_spec(self.exp.task.name)
