"""One tiny corpus with neighbours and a teacher whose states are computed at every call, exactly."""

from dataclasses import dataclass
from itertools import islice
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
from refbert_dist.data.builtin import python_docs_documents
from refbert_dist.data.tokens import TokenSet, longest, tokens_artifact
from refbert_dist.models.teacher import Teacher
from refbert_dist.objectives.distill import EncoderObjective
from refbert_dist.references.neighbours import NeighbourTable, neighbours_artifact
from refbert_dist.references.sources import Neighbours
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
        return tiny_experiment(self.root, "task=null", "student.dropout=0", *own_corpus(self.root), *overrides)

    def references(self, exp: Experiment) -> Neighbours:
        states = ReferenceStates(
            self.tokens,
            self.states,
            self.teacher,
            key_layer=exp.references.key_layer,
            value_layer=value_layer(exp),
            max_length=exp.references.max_length,
            device=CPU,
        )
        return Neighbours(self.neighbours, states)

    def student(self, exp: Experiment, system: SystemName) -> Any:
        """A student with weights so large that each of them counts."""
        student = new_encoder(exp, system)
        torch.manual_seed(5)
        for parameter in student.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        return student

    def objective(
        self, system: SystemName, *overrides: str, student: Any = None, mask_token_id: int | None = None
    ) -> EncoderObjective:
        exp = self.experiment(*overrides)
        references = self.references(exp) if exp.reference_count(system) else None
        student = self.student(exp, system) if student is None else student
        torch.manual_seed(6)
        return EncoderObjective(
            student,
            self.teacher,
            self.tokens,
            self.states,
            references,
            exp.distill,
            mask_token_id,
            length=longest(exp, "corpus"),
        )


def own_corpus(root: Path) -> tuple[str, str]:
    """Overrides for the corpus of :func:`write_corpus`."""
    return f"corpus.path={root / 'corpus.txt'}", "corpus.max_documents=null"


def write_corpus(path: Path) -> None:
    """40 documents of 6 to 39 words, so that a batch of any of them is padded."""
    words = [word for document in islice(python_docs_documents(), 30) for word in document.split() if word.isalpha()]
    documents = [" ".join(words[40 * number : 40 * number + 6 + 11 * number % 34]) for number in range(40)]
    path.write_text("\n\n".join(documents), encoding="utf-8")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("objectives")
    lively_teacher(root / "teacher", "bert")
    write_corpus(root / "corpus.txt")
    exp = tiny_experiment(root, "task=null", *own_corpus(root))
    pipeline.run(exp, ["retrieve"])
    tokens = TokenSet.open(tokens_artifact(exp, "corpus"))
    teacher = Teacher.load(exp.teacher.model).requires_grad_(False)
    table = NeighbourTable.open(neighbours_artifact(exp, "corpus"))
    return World(root, tokens, teacher, OnlineStates(teacher, tokens, CPU), table.prefix(2))
