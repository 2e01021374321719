import os
from pathlib import Path

import pytest

from refbert_dist.artifacts import changed_file, describe_files, hash_strings, recipe_key


def test_recipe_keys_depend_on_content_not_on_order() -> None:
    assert recipe_key("a", {"x": 1, "y": [2]}) == recipe_key("a", {"y": [2], "x": 1})
    keys = {recipe_key("a", {"x": 1}), recipe_key("b", {"x": 1}), recipe_key("a", {"x": 2}), recipe_key("a", {"z": 1})}
    assert len(keys) == 4


def test_borders_between_strings_count() -> None:
    assert hash_strings(["ab", "c"]) != hash_strings(["a", "bc"])


@pytest.fixture
def described(tmp_path: Path) -> tuple[Path, list[dict]]:
    path = tmp_path / "source.txt"
    path.write_text("some text")
    return path, describe_files([path])


def test_touching_a_source_does_not_change_it(described: tuple[Path, list[dict]]) -> None:
    path, description = described
    os.utime(path, (1, 1))
    assert changed_file(description) is None


def test_another_content_of_the_same_size_is_seen(described: tuple[Path, list[dict]]) -> None:
    path, description = described
    path.write_text("same size")
    os.utime(path, (1, 1))
    assert changed_file(description) == str(path)


def test_a_source_that_is_gone_is_no_change(described: tuple[Path, list[dict]]) -> None:
    path, description = described
    path.unlink()
    assert changed_file(description) is None
