from pathlib import Path

from refbert_dist.data.tables import read_table, save_table


def test_round_trip_keeps_missing_texts_and_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    save_table({"a": ["x", "ü\n"], "b": [None, None], "n": [3, 4]}, {"a": "string", "b": "string", "n": "int64"})(path)
    assert read_table(path) == {"a": ["x", "ü\n"], "b": [None, None], "n": [3, 4]}


def test_no_progress_bar_is_shown(tmp_path: Path, capfd: object) -> None:
    save_table({"a": ["x"]}, {"a": "string"})(tmp_path / "t.parquet")
    assert capfd.readouterr().err == ""  # type: ignore[attr-defined]
