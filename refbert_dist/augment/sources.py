"""Where candidates come from in an experiment, as far as it can be told without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refbert_dist.augment.glove import check_glove
from refbert_dist.config import Experiment
from refbert_dist.errors import UserError
from refbert_dist.models.locate import TEACHER, check_teacher_folder, has_masked_lm

MASKED_LM = "task.augment.masked_lm"


@dataclass(frozen=True)
class Sources:
    """What finds candidates; one of the two at least."""

    glove: Path | None
    masked_lm: str | None
    field: str = TEACHER
    """The setting that names ``masked_lm``."""
    remark: str | None = None
    """What is not as asked for, for people."""

    @property
    def names(self) -> list[str]:
        """As in ``task.augment.candidates``."""
        return [*(["masked-lm"] if self.masked_lm else []), *(["glove"] if self.glove else [])]


def sources(exp: Experiment) -> Sources:
    """The sources of an experiment with ``task.augment``.

    Raises :class:`UserError` where the masked-LM head that was asked for is not there.
    """
    assert exp.task and exp.task.augment
    config = exp.task.augment
    glove = None if config.candidates == "masked-lm" else config.glove
    if config.candidates == "glove":
        return Sources(glove, None)
    spec, field = config.masked_lm or exp.teacher.model, MASKED_LM if config.masked_lm else TEACHER
    check_teacher_folder(spec, field)
    if has_masked_lm(spec, field):
        return Sources(glove, spec, field)
    if config.masked_lm:
        raise UserError(
            f"{MASKED_LM} is '{spec}', which has no masked-LM head; name a model that has one, or set "
            "task.augment.candidates=glove"
        )
    if config.candidates == "masked-lm":
        raise UserError(
            f"task.augment.candidates is 'masked-lm', but teacher.model '{spec}' has no masked-LM head; name a model "
            f"that has one in {MASKED_LM}, or set task.augment.candidates=glove"
        )
    remark = f"teacher.model '{spec}' has no masked-LM head, so candidates come from GloVe alone"
    return Sources(glove, None, remark=remark)


def check_augment(exp: Experiment) -> None:
    """Raise :class:`UserError` for what is wrong with ``task.augment`` before anything is read."""
    glove = sources(exp).glove
    if glove is not None:
        check_glove(glove)
