"""One tiny corpus with neighbours and a teacher whose states are computed at every call, exactly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teachers import lively_teacher
from tiny import tiny_experiment

from refbert_dist import pipeline
from refbert_dist.cache.contract import value_layer
from refbert_dist.cache.states import OnlineStates
from refbert_dist.config import Experiment, SystemName
from refbert_dist.data.tokens import TokenSet, tokens_artifact
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.distill import EncoderObjective, References
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.states import ReferenceStates
from refbert_dist.stages.students import new_encoder

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    root: Path
    tokens: TokenSet
    teacher: Teacher
    states: OnlineStates
    neighbours: np.ndarray

    def experiment(self, *overrides: str) -> Experiment:
        return tiny_experiment(self.root, "task=null", "corpus.max_documents=4", "student.dropout=0", *overrides)

    def references(self, exp: Experiment) -> References:
        states = ReferenceStates(
            self.tokens,
            self.states,
            self.teacher,
            key_layer=exp.references.key_layer,
            value_layer=value_layer(exp),
            max_length=exp.references.max_length,
            device=CPU,
        )
        return References(self.neighbours, states)

    def student(self, exp: Experiment, system: SystemName) -> Any:
        """A student with weights so large that each of them counts."""
        student = new_encoder(exp, system)
        torch.manual_seed(5)
        for parameter in student.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        return student

    def objective(self, system: SystemName, *overrides: str, student: Any = None) -> EncoderObjective:
        exp = self.experiment(*overrides)
        references = self.references(exp) if exp.reference_count(system) else None
        student = self.student(exp, system) if student is None else student
        torch.manual_seed(6)
        return EncoderObjective(student, self.teacher, self.tokens, self.states, references, exp.distill)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("objectives")
    lively_teacher(root / "teacher", "bert")
    exp = tiny_experiment(root, "task=null", "corpus.max_documents=4")
    pipeline.run(exp, ["retrieve"])
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    teacher = Teacher.load(exp.teacher.model).requires_grad_(False)
    table = NeighbourTable.open(neighbours_artifact(exp, "corpus"))
    return World(root, tokens, teacher, OnlineStates(teacher, tokens, CPU), table.prefix(2))
