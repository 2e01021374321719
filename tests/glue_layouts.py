"""Small files in the original layout of every GLUE task, and the same rows as data sets in the columns of the hub."""

import random
from collections.abc import Sequence
from pathlib import Path

from refbert_dist.data.builtin import python_docs_documents

Row = tuple[str, str | None, float]

NAMES = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI")
SINGLE = ("CoLA", "SST-2")
CLASSES = {
    "MNLI": ("entailment", "neutral", "contradiction"),
    "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
}
"""Of the tasks whose files hold names."""
HUB_CLASSES = {
    "CoLA": ("unacceptable", "acceptable"),
    "SST-2": ("negative", "positive"),
    "MRPC": ("not_equivalent", "equivalent"),
    "QQP": ("not_duplicate", "duplicate"),
    "WNLI": ("not_entailment", "entailment"),
    **CLASSES,
}
HUB_COLUMNS = {
    **dict.fromkeys(SINGLE, ("sentence",)),
    **dict.fromkeys(("MRPC", "STS-B", "RTE", "WNLI"), ("sentence1", "sentence2")),
    "QQP": ("question1", "question2"),
    "MNLI": ("premise", "hypothesis"),
    "QNLI": ("question", "sentence"),
}
PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
LABELLED = {
    "CoLA": (None, "gj04\t{label}\t\t{a}"),
    "SST-2": ("sentence\tlabel", "{a} \t{label}"),
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t7{i}\t8{i}\t{a}\t{b}"),
    "STS-B": (STSB + "\tscore", "{i}\tmain-captions\tMSRvid\t2012test\t000{i}\tnone\tnone\t{a}\t{b}\t{label:.3f}"),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "133{i}\t21{i}\t22{i}\t{a}\t{b}\t{label}"),
    "MNLI": (
        f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2\tlabel1\tgold_label",
        "{i}\t311{i}\t311{i}n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{a}\t{b}\tneutral\t{label}",
    ),
    "QNLI": ("index\tquestion\tsentence\tlabel", "{i}\t{a}\t{b}\t{label}"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "{i}\t{a}\t{b}\t{label}"),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "{i}\t{a}\t{b}\t{label}"),
}
"""Header and form of the rows to train and evaluate on."""
MNLI_DEV = (
    f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
    "{i}\t63{i}\t63{i}n\tslate\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{a}\t{b}\tneutral\tneutral\t-\t-\t-\t{label}",
)
TEST = {
    "CoLA": ("index\tsentence", "{i}\t{a}"),
    "SST-2": ("index\tsentence", "{i}\t{a} "),
    "MRPC": ("index\t#1 ID\t#2 ID\t#1 String\t#2 String", "{i}\t7{i}\t8{i}\t{a}\t{b}"),
    "STS-B": (STSB, "{i}\tmain-captions\tMSRvid\t2012test\t000{i}\tnone\tnone\t{a}\t{b}"),
    "QQP": ("id\tquestion1\tquestion2", "{i}\t{a}\t{b}"),
    "MNLI": (
        f"index\tpromptID\tpairID\tgenre\t{PARSES}\tsentence1\tsentence2",
        "{i}\t314{i}\t314{i}n\ttravel\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{a}\t{b}",
    ),
    "QNLI": ("index\tquestion\tsentence", "{i}\t{a}\t{b}"),
    "RTE": ("index\tsentence1\tsentence2", "{i}\t{a}\t{b}"),
    "WNLI": ("index\tsentence1\tsentence2", "{i}\t{a}\t{b}"),
}
DIAGNOSTIC = ("index\tsentence1\tsentence2", "{i}\t{a}\t{b}")


def rows(name: str, count: int, seed: int = 0) -> list[Row]:
    """Sentences (or pairs) of real text, some in quotation marks, and labels in turn."""
    found = [
        text for document in python_docs_documents() for text in document.split(". ") if 5 <= len(text.split()) <= 15
    ]
    rng = random.Random(f"{name} {seed}")
    texts = iter(rng.sample(found, 2 * count))
    classes = len(CLASSES.get(name, "01"))
    labels = [row % 6 * 0.8 if name == "STS-B" else float(row % classes) for row in range(count)]
    pairs = [(" ".join(next(texts).split()), '"' + " ".join(next(texts).split())) for _ in range(count)]
    return [(a, None if name in SINGLE else b, label) for (a, b), label in zip(pairs, labels, strict=True)]


def write(path: Path, name: str, given: Sequence[Row], layout: tuple[str | None, str]) -> None:
    """A TSV file; in a test layout labels are not written."""
    header, form = layout
    lines = [] if header is None else [header]
    for number, (a, b, label) in enumerate(given):
        cell = CLASSES[name][int(label)] if name in CLASSES else label if name == "STS-B" else int(label)
        lines.append(form.format(i=number, a=a, b=b, label=cell))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def files(name: str, count: int = 12) -> dict[str, tuple[list[Row], tuple[str | None, str]]]:
    """All files of a task, with what is in them."""
    parts = ["train", "dev", "test"]
    layouts = {"train": LABELLED[name], "dev": LABELLED[name], "test": TEST[name]}
    if name == "MNLI":
        parts = ["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched", "diagnostic"]
        layouts |= {part: MNLI_DEV for part in parts[1:3]} | {part: TEST[name] for part in parts[3:5]}
        layouts["diagnostic"] = DIAGNOSTIC
    sizes = {"train": 3 * count}
    return {part: (rows(name, sizes.get(part, count), seed), layouts[part]) for seed, part in enumerate(parts)}


def glue_folder(folder: Path, name: str, count: int = 12) -> Path:
    """A task's folder as GLUE's download leaves it."""
    for part, (given, layout) in files(name, count).items():
        write(folder / f"{part}.tsv", name, given, layout)
    return folder


def hub_split(part: str) -> str:
    """What the hub calls a file."""
    return part.replace("dev", "validation")


def data_sets(name: str, count: int = 12) -> dict[str, object]:
    """The same rows by split, as ``datasets`` holds them; of tests the label is -1, as on the hub."""
    import datasets

    label = datasets.Value("float32") if name == "STS-B" else datasets.ClassLabel(names=list(HUB_CLASSES[name]))
    columns = HUB_COLUMNS[name]
    features = {column: datasets.Value("string") for column in columns} | {
        "label": label,
        "idx": datasets.Value("int32"),
    }
    found = {}
    for part, (given, _) in files(name, count).items():
        if part == "diagnostic":
            continue
        tested = part.startswith("test")
        values = {
            **{column: [row[place] for row in given] for place, column in enumerate(columns)},
            "label": [-1 if tested else row[2] if name == "STS-B" else int(row[2]) for row in given],
            "idx": list(range(len(given))),
        }
        found[hub_split(part)] = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    return found
