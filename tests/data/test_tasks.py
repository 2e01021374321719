from pathlib import Path

import glue_layouts
import pytest

from refbert_dist.config import TaskConfig
from refbert_dist.data.tasks import (
    Example,
    check_task,
    document_parents,
    has_phrases,
    load_task,
    sentence_groups,
    task_files,
    task_spec,
)
from refbert_dist.errors import UserError

MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"


def write(folder: Path, *lines: str, name: str = "train.tsv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def config(name: str, path: Path | str, **fields: object) -> TaskConfig:
    return TaskConfig(name=name, path=str(path), **fields)  # type: ignore[arg-type]


def fault(name: str, path: Path | str, **fields: object) -> str:
    with pytest.raises(UserError) as caught:
        load_task(config(name, path, **fields), "train", seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cola_has_no_header_and_quotation_marks_are_text(tmp_path: Path) -> None:
    write(tmp_path, 'gj04\t1\t\t"Go, said she.', "cj99\t0\t*\tThe more, 'the less.", "")
    assert load_task(config("CoLA", tmp_path), "train", 0) == [
        Example('"Go, said she.', None, 1.0, 0),
        Example("The more, 'the less.", None, 0.0, 1),
    ]


def test_mrpc_pairs_with_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path, "\ufeff" + MRPC_HEADER, '1\t11\t12\tHe said "yes.\tHe agreed.', "0\t1\t2\tA b c.\tX y z.")
    assert load_task(config("MRPC", tmp_path), "train", 0) == [
        Example('He said "yes.', "He agreed.", 1.0, 0),
        Example("A b c.", "X y z.", 0.0, 1),
    ]


def test_sst2_phrases_end_in_a_space_and_may_recur(tmp_path: Path) -> None:
    write(tmp_path, "sentence\tlabel", "goes to absurd lengths \t0", "saw how bad \t0", "Goes to absurd lengths\t1")
    assert load_task(config("SST-2", tmp_path), "train", 0) == [
        Example("goes to absurd lengths", None, 0.0, 0),
        Example("saw how bad", None, 0.0, 1),
        Example("Goes to absurd lengths", None, 1.0, 0),
    ]
    assert task_spec("SST-2").metrics == ("accuracy",)
    assert "lacks 'sentence'" in fault("SST-2", write(tmp_path, "text\tlabel", "good\t1"))


def test_stsb_scores_and_columns_are_found_by_name(tmp_path: Path) -> None:
    cells = "0\tmain\tMSRvid\t2012\t0001\tnone\tnone\tA plane.\tAn air plane.\t3.800"
    write(tmp_path, STSB_HEADER, cells)
    expected = [Example("A plane.", "An air plane.", 3.8, 0)]
    assert load_task(config("STS-B", tmp_path), "train", 0) == expected
    write(tmp_path, "sentence2\tscore\tsentence1", "An air plane.\t3.8\tA plane.")
    assert load_task(config("STS-B", tmp_path), "train", 0) == expected


def test_same_topic_is_built_in() -> None:
    task = config("same-topic", "builtin:python-docs")
    train, dev = load_task(task, "train", 0), load_task(task, "dev", 0)
    assert len(train) > len(dev) > 100
    assert all(row.text_b for row in train)
    assert len({row.group for row in train}) == len(train)
    assert task_files(task, "train") == ()
    check_task(task)


def test_rows_with_a_common_sentence_share_a_group() -> None:
    rows = [("A b", "C d"), ("E f", "G h"), ("c  D", "I j"), ("K l", None), ("e F", None), ("i j", "m n")]
    assert sentence_groups(rows) == [0, 1, 0, 2, 1, 0]


def test_max_train_draws_with_the_seed_and_keeps_order(tmp_path: Path) -> None:
    write(tmp_path, *(f"s\t{row % 2}\t\tsentence {row}" for row in range(50)))
    write(tmp_path, *(f"s\t{row % 2}\t\tother {row}" for row in range(50)), name="dev.tsv")
    task = config("CoLA", tmp_path, max_train=10)
    first, again, other = (load_task(task, "train", seed) for seed in (1, 1, 2))
    assert first == again != other
    numbers = [int(row.text_a.split()[1]) for row in first]
    assert len(numbers) == 10
    assert numbers == sorted(numbers)
    assert len(load_task(task, "dev", 1)) == 50


def test_held_out_rows_share_no_sentence_with_the_others(tmp_path: Path) -> None:
    # Of each five rows four are linked in a chain, the last stands alone.
    pairs = [
        (f"{row // 5}-{row % 5}", f"{row // 5}-{row % 5 + 1}") if row % 5 < 4 else (f"first {row}", f"second {row}")
        for row in range(100)
    ]
    rows = [f"{row % 2}\t{row}\t{row}\t{first}\t{second}" for row, (first, second) in enumerate(pairs)]
    write(tmp_path, MRPC_HEADER, *rows)
    task = config("MRPC", tmp_path, held_out=0.2)
    check_task(task)  # nobody asks for a dev file
    train, held = (load_task(task, split, 3) for split in ("train", "dev"))
    assert sorted((row.text_a, row.text_b) for row in train + held) == sorted(pairs)
    assert 15 <= len(held) <= 20

    def sentences(rows: list[Example]) -> set[str | None]:
        return {text for row in rows for text in (row.text_a, row.text_b)}

    assert not sentences(train) & sentences(held)
    assert held == load_task(task, "dev", 3) != load_task(task, "dev", 4)
    few = config("MRPC", tmp_path, held_out=0.2, max_train=50)
    assert len(load_task(few, "train", 3)) + len(load_task(few, "dev", 3)) == 50


def test_rows_that_are_all_linked_cannot_be_held_out(tmp_path: Path) -> None:
    write(tmp_path, MRPC_HEADER, *(f"1\t1\t2\tsame\tother {row}" for row in range(10)))
    words = fault("MRPC", tmp_path, held_out=0.2)
    assert words.startswith("task.held_out is 0.2, but of the 10 rows of task.train_file 10 are linked")


def phrases(folder: Path) -> Path:
    """Twenty sentences of six words with two phrases each, and one phrase that lies in all of them."""
    rows = ["Funny"]
    for row in range(20):
        own = [f"w{row}x{place}" for place in range(5)]
        rows += [" ".join([*own, "funny"]), " ".join(own[:3]), own[4]]
    return write(folder, "sentence\tlabel", *(f"{text}\t1" for text in rows))


def test_phrases_of_one_sentence_are_held_out_together(tmp_path: Path) -> None:
    task = config("SST-2", phrases(tmp_path), held_out=0.25)
    train, held = (load_task(task, split, 1) for split in ("train", "dev"))

    def sentences(rows: list[Example]) -> set[str]:
        return {word.partition("x")[0] for row in rows for word in row.text_a.split() if "x" in word}

    assert len(train) + len(held) == 61 and 12 <= len(held) <= 15
    assert not sentences(train) & sentences(held)
    apart = task.model_copy(update={"phrases": False})
    assert sentences(load_task(apart, "train", 1)) & sentences(load_task(apart, "dev", 1))


def test_parents_are_known_of_rows_whose_sentence_was_not_drawn(tmp_path: Path) -> None:
    task = config("SST-2", phrases(tmp_path), max_train=30)
    parents, rows = document_parents(task), load_task(task, "train", 0)
    groups: dict[str, set[int]] = {}
    for row in rows:
        groups.setdefault(row.text_a.split()[0].partition("x")[0], set()).add(int(parents[row.group]))
    assert len(rows) == 30 and all(len(found) == 1 for found in groups.values())
    assert len(set.union(*groups.values())) == len(groups)


def test_only_single_sentences_can_be_phrases(tmp_path: Path) -> None:
    assert has_phrases(config("SST-2", tmp_path)) and not has_phrases(config("CoLA", tmp_path))
    assert not has_phrases(config("SST-2", tmp_path, phrases=False)) and has_phrases(config("CoLA", "", phrases=True))
    write(tmp_path, MRPC_HEADER, "1\t1\t2\ta b\tc d")
    write(tmp_path, MRPC_HEADER, "1\t1\t2\te f\tg h", name="dev.tsv")
    with pytest.raises(UserError, match=r"task\.phrases is true, but rows of MRPC are pairs"):
        check_task(config("MRPC", tmp_path, phrases=True))


def test_min_words_leaves_short_training_rows_out(tmp_path: Path) -> None:
    write(tmp_path, MRPC_HEADER, "1\t1\t2\tone, two\tthree", "1\t1\t2\tone\t- two!", "1\t1\t2\tone two three\tfour")
    write(tmp_path, MRPC_HEADER, "1\t1\t2\ta\tb", name="dev.tsv")
    long = config("MRPC", tmp_path, min_words=3)
    assert [row.text_a for row in load_task(long, "train", 0)] == ["one, two", "one two three"]
    assert len(load_task(long, "dev", 0)) == 1
    assert len(load_task(config("MRPC", tmp_path, min_words=3, max_train=1), "train", 0)) == 1
    assert fault("MRPC", tmp_path, min_words=5) == (
        "task.min_words is 5, but the longest row of task.train_file has 4 words; set a smaller task.min_words"
    )


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        # MNLI: three hypotheses for a premise. QNLI: sentences of a paragraph, and questions, recur. QQP: both recur.
        ("MNLI", [(f"premise {row // 3}", f"hypothesis {row}") for row in range(90)]),
        ("QNLI", [(f"question {row // 2}", f"sentence {row % 2} of {row // 4}") for row in range(80)]),
        ("QQP", [(f"question {row}", f"question {row + (row % 4 < 3)} ") for row in range(80)]),
    ],
)
def test_held_out_rows_of_every_pair_task_share_no_sentence(
    tmp_path: Path, name: str, pairs: list[tuple[str, str]]
) -> None:
    classes = {"MNLI": 3}.get(name, 2)
    rows: list[glue_layouts.Row] = [(first, second, float(row % classes)) for row, (first, second) in enumerate(pairs)]
    glue_layouts.write(tmp_path / "train.tsv", name, rows, glue_layouts.LABELLED[name])
    task = config(name, tmp_path, held_out=0.25)
    check_task(task)
    train, held = (load_task(task, split, 0) for split in ("train", "dev"))
    assert len(train) + len(held) == len(pairs) and 0.15 * len(pairs) < len(held) <= 0.25 * len(pairs)
    sentences = [{text for row in part for text in (row.text_a, row.text_b)} for part in (train, held)]
    assert sentences[0].isdisjoint(sentences[1])


def test_missing_folder_and_files(tmp_path: Path) -> None:
    assert fault("CoLA", tmp_path / "gone").startswith(f"task.path is '{tmp_path / 'gone'}': no such folder")
    write(tmp_path, "a\t1\t\tb", name="dev.tsv")
    assert "task.train_file is 'train.tsv': no such file" in fault("CoLA", tmp_path)
    assert "which holds dev.tsv" in fault("CoLA", tmp_path)
    assert "is a file, not a folder" in fault("CoLA", tmp_path / "dev.tsv")
    with pytest.raises(UserError, match=r"task.dev_file is 'x.tsv'"):
        load_task(config("CoLA", tmp_path, dev_file="x.tsv"), "dev", 0)


def test_the_path_must_fit_the_task(tmp_path: Path) -> None:
    assert "CoLA is not built in" in fault("CoLA", "builtin:python-docs")
    assert "same-topic is built in; set task.path=builtin:python-docs" in fault("same-topic", tmp_path)


def test_training_and_evaluation_rows_must_differ(tmp_path: Path) -> None:
    write(tmp_path, "a\t1\t\tb")
    write(tmp_path, "a\t1\t\tc", name="dev.tsv")
    for field in ("dev_file", "test_file"):
        with pytest.raises(UserError, match=rf"task.{field} is './train.tsv', the same file"):
            check_task(config("CoLA", tmp_path, **{field: "./train.tsv"}))


@pytest.mark.parametrize(
    ("name", "field"),
    [("CoLA", "dev_mismatched_file"), ("RTE", "test_mismatched_file"), ("QNLI", "diagnostic_file")],
)
def test_further_rows_belong_to_the_task(tmp_path: Path, name: str, field: str) -> None:
    glue_layouts.glue_folder(tmp_path, name)
    check_task(config(name, tmp_path, test_file="test.tsv"))
    with pytest.raises(UserError, match=rf"task.{field} is 'test.tsv', but {name} has no such rows; set task.{field}="):
        check_task(config(name, tmp_path, **{field: "test.tsv"}))
    with pytest.raises(UserError, match="same-topic has no such rows"):
        check_task(config("same-topic", "builtin:python-docs", test_file="test.tsv"))
    with pytest.raises(UserError, match=r"task.test_file is 'tests.tsv': no such file"):
        check_task(config(name, tmp_path, test_file="tests.tsv"))


def test_all_files_of_mnli_are_found_without_being_named(tmp_path: Path) -> None:
    task = config("MNLI", glue_layouts.glue_folder(tmp_path, "MNLI"))
    check_task(task)
    files = glue_layouts.files("MNLI")
    for split, part in (("train", "train"), ("dev", "dev_matched"), ("dev-mismatched", "dev_mismatched")):
        found = load_task(task, split, 0)  # type: ignore[arg-type]
        assert [(row.text_a, row.text_b, row.label) for row in found] == files[part][0]
