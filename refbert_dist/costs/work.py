"""Operations of forward and backward passes, counted from shapes.

One multiplication and addition are two operations. Everything that is no matrix product (normalisation, activation,
softmax, dropout, losses) is counted in *elements* that are gone over, because memory bounds it, not arithmetic. H and I
are widths of states and feed-forward layer, T is the teacher's H, n the number of tokens that a token attends to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from refbert_dist.config import DistillConfig, Experiment, StudentConfig
from refbert_dist.config.weights import MASKED_PERCENT
from refbert_dist.models.layer_map import layer_map
from refbert_dist.models.locate import TeacherInfo

BACKWARD = 2.0
"""A backward pass takes twice the operations of its forward pass: gradients of inputs and of weights."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of an encoder."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    embeddings: int
    """Rows of all embedding tables."""

    @property
    def parameters(self) -> int:
        """Weights of embeddings and layers, without pooler and head."""
        h, i = self.hidden, self.intermediate
        return (self.embeddings + 2) * h + self.layers * (4 * h * h + 2 * h * i + 9 * h + i)


def teacher_shape(info: TeacherInfo) -> Shape:
    """The teacher's."""
    return Shape(
        layers=info.layers,
        hidden=info.hidden,
        heads=info.heads,
        intermediate=info.intermediate,
        embeddings=info.vocab_size + info.max_positions + info.type_vocab_size,
    )


def student_shape(student: StudentConfig, info: TeacherInfo) -> Shape:
    """The student's, without what reads references."""
    return Shape(
        layers=student.layers,
        hidden=student.hidden,
        heads=student.heads,
        intermediate=student.intermediate,
        embeddings=info.vocab_size + info.max_positions + 2,
    )


def classifier_parameters(exp: Experiment, info: TeacherInfo, labels: int) -> int:
    """Weights of the finished student: encoder, what reads references, pooler and head."""
    shape, h = student_shape(exp.student, info), exp.student.hidden
    references, reads = exp.references, 0
    if references.count:
        maps = 1 if references.tie_projections else 2
        gate = {"none": 0, "bias": exp.student.heads, "token": exp.student.heads + h}[references.gate]
        reads = maps * (info.hidden * h + (2 * h if references.normalize else 0)) + gate
    if references.memory:
        reads += (references.memory + 2) * h
    return shape.parameters + reads + (h * h + h) + labels * (h + 1)


@dataclass(frozen=True)
class Work:
    """What a device has to do."""

    flops: float = 0.0
    """Operations of matrix products."""
    elements: float = 0.0
    """Elements that everything else goes over."""
    layers: float = 0.0
    """Layers started: each costs a little, however small its input."""

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.elements + other.elements, self.layers + other.layers)

    def __mul__(self, factor: float) -> Work:
        return Work(self.flops * factor, self.elements * factor, self.layers * factor)

    def with_backward(self) -> Work:
        """Of a trained module: forward and backward."""
        return Work(self.flops * (1 + BACKWARD), self.elements * (1 + BACKWARD), self.layers)


def forward(shape: Shape, tokens: float, seen: float, passes: float = 1.0) -> Work:
    """An encoder on ``tokens`` tokens, each of which attends to ``seen``, in ``passes`` batches.

    For each token a layer takes 8 H^2 (queries, keys, values, output) + 4 H I (feed-forward) + 4 n H (scores and the
    sum over values) operations.
    """
    h, i = shape.hidden, shape.intermediate
    flops = 8 * h * h + 4 * h * i + 4 * seen * h
    elements = 8 * h + 2 * i + 4 * shape.heads * seen
    return Work(shape.layers * tokens * flops, shape.layers * tokens * elements, shape.layers * passes)


def reading(shape: Shape, width: int, tokens: float, samples: float, read: float) -> Work:
    """What references add to the first layer: each of ``tokens`` attends to ``read`` = K R further tokens.

    These are projected once a sample, for keys and for values: from ``width`` = T to H, then H to H.
    """
    h = shape.hidden
    projected = samples * read
    flops = 4 * tokens * read * h + projected * (4 * width * h + 4 * h * h)
    elements = 4 * tokens * read * shape.heads + projected * (8 * h + 2 * width)
    return Work(flops, elements)


def remembering(shape: Shape, tokens: float, memory: int) -> Work:
    """What a memory adds to the first layer: each of ``tokens`` attends to its states, projected once a batch."""
    h = shape.hidden
    return Work(4 * tokens * memory * h + 4 * memory * h * h, 4 * tokens * memory * shape.heads + memory * 8 * h)


def losses(config: DistillConfig, student: Shape, teacher: Shape, tokens: float, seen: float) -> tuple[Work, Work]:
    """Hidden, embedding and attention losses of an encoder: (work that has gradients, the frozen teacher's).

    Each mapped layer's states go through the width map, 2 H T a token. Attention targets are recomputed from stored
    layer inputs by the teacher's own projections, and so are the student's: scores take 4 T^2 (queries, keys) + 2 n T a
    token and layer, three relations 6 T^2 (values, too) + 6 n T; the student's with H for T.
    """
    weights = config.weights
    mapped = len(layer_map(config.layer_map, student.layers, teacher.layers))
    h, t = student.hidden, teacher.hidden
    maps = (mapped if weights.hidden else 0) + (1 if weights.embedding else 0)
    trained = Work(2 * tokens * h * t * maps, 4 * tokens * t * maps)
    frozen = Work()
    if weights.attention:
        if uses_scores(config, student, teacher):
            projected, compared, heads = 2, 1, teacher.heads
        else:
            common = math.gcd(h, t)
            projected = compared = 3
            heads = max(heads for heads in range(1, teacher.heads + 1) if common % heads == 0)
        each = tokens * mapped
        maps_gone_over = each * compared * heads * seen
        trained += Work(each * (2 * projected * h * h + 2 * compared * seen * h), 4 * maps_gone_over + 2 * each * h)
        frozen += Work(each * (2 * projected * t * t + 2 * compared * seen * t), 2 * maps_gone_over + 2 * each * t)
    return trained, frozen


def masked_language(student: Shape, vocabulary: int, tokens: float, seen: float) -> Work:
    """The masked-language term: another pass of the student, then its head on the masked share of the tokens.

    The head takes 2 H^2 (transform) + 2 H V (word embeddings) a masked token. What references add to the pass is not in
    it.
    """
    h, masked = student.hidden, MASKED_PERCENT / 100 * tokens
    head = Work(masked * (2 * h * h + 2 * h * vocabulary), masked * (6 * h + 3 * vocabulary))
    return forward(student, tokens, seen) + head


def uses_scores(config: DistillConfig, student: Shape, teacher: Shape) -> bool:
    """Whether attention is compared head by head (else by relations)."""
    return config.attention == "scores" or (config.attention == "auto" and student.heads == teacher.heads)
