"""The labelled task: where its rows lie, and which of them are trained on, evaluated and submitted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from refbert_dist.config.augment import AugmentConfig
from refbert_dist.config.section import Positive, Section, Weight

Split = Literal["train", "dev", "dev-mismatched", "test", "test-mismatched", "diagnostic"]
"""Rows that belong together. All but ``train`` are evaluated: nothing is trained on them or reads them."""

FURTHER: tuple[Split, ...] = ("dev-mismatched", "test", "test-mismatched", "diagnostic")
"""Splits that only some experiments have."""


class TaskConfig(Section):
    """One task."""

    name: str
    """``CoLA``, ``SST-2``, ``MRPC``, ``STS-B``, ``QQP``, ``MNLI``, ``QNLI``, ``RTE``, ``WNLI`` (GLUE), or what is built
    in: ``same-topic``, ``looked-up``."""
    title: str | None = None
    """What results call it; ``null``: ``name``. For rows that are not all of the task's, such as ``QQP-subset``."""
    path: str
    """Folder in GLUE's TSV layout; folder of Parquet files or of ``save_to_disk``, in the columns of GLUE on the hub;
    ``datasets:NAME/CONFIGURATION``, such as ``datasets:nyu-mll/glue/mrpc``; or ``builtin:python-docs`` (same-topic),
    ``builtin:looked-up``."""
    train_file: str = "train.tsv"
    """File of ``path`` to train on; also the pool that references are drawn from. Where ``path`` is a data set, this
    and the other files are its splits: ``train.tsv`` stands for ``train``, ``dev.tsv`` for ``validation``."""
    dev_file: str = "dev.tsv"
    """File of ``path`` to evaluate on; of MNLI ``dev_matched.tsv`` unless given."""
    dev_mismatched_file: str | None = None
    """MNLI's second file to evaluate on, of other genres; of MNLI ``dev_mismatched.tsv`` unless given."""
    test_file: str | None = None
    """File of ``path`` with rows to answer for GLUE's test server, whose labels are not read; ``null``: none. Like all
    evaluated rows they are nobody's references, so name it before the students are trained."""
    test_mismatched_file: str | None = None
    """MNLI's second test file."""
    diagnostic_file: str | None = None
    """GLUE's diagnostic file (AX), which a student of MNLI answers."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens in a sample or pair at most, special tokens included; the longer sentence is cut first."""
    max_train: Positive | None = None
    """Use only this many training rows, drawn with ``seed``; ``null`` uses all."""
    min_words: Positive | None = None
    """Use only training rows of at least so many words; ``null`` uses all. Where they are much shorter than the rows to
    evaluate on, as SST-2's phrases are, their references tell more, and a student learns to trust them too much."""
    phrases: bool | None = None
    """Whether training rows may be phrases of one sentence, which is a row, too: such rows never read each other, and
    ``held_out`` keeps them together. ``null``: as is known of the task; of those named above only SST-2's are."""
    held_out: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of these rows on which is evaluated instead of on ``dev_file`` and all further files; nothing is trained on
    them or looks them up, and rows with a common sentence stay together. For choosing settings without seeing dev, as a
    search does."""
    min_teacher_gain: Weight | None = 0.05
    """By how much the fine-tuned teacher's leading metric on dev must beat the best constant answer, or nothing is
    distilled from it; ``null`` switches this and the check of a classifier's labels off."""
    augment: AugmentConfig | None = None
    """Students train on altered copies of the training rows, too; ``null``: on the rows alone."""

    @model_validator(mode="before")
    @classmethod
    def _two_files_of_dev(cls, data: Any) -> Any:
        """MNLI's evaluated rows lie in two files, and none is called ``dev.tsv``."""
        if isinstance(data, dict) and data.get("name") == "MNLI":
            return {"dev_file": "dev_matched.tsv", "dev_mismatched_file": "dev_mismatched.tsv", **data}
        return data

    @property
    def shown(self) -> str:
        """What results call it."""
        return self.title or self.name

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are, in the order in which they are made."""
        further = () if self.held_out else tuple(split for split in FURTHER if self.file(split) is not None)
        return ("train", "dev", *further)

    def source(self, split: Split) -> str:
        """The field that names the file in which a split's rows lie."""
        if split == "train" or (split == "dev" and self.held_out):
            return "train_file"
        return f"{split.replace('-', '_')}_file"

    def file(self, split: Split) -> str | None:
        """The file in which a split's rows lie; None where there is none."""
        name: str | None = getattr(self, self.source(split))
        return name
