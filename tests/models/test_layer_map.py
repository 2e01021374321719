import pytest

from refbert_dist.errors import UserError
from refbert_dist.models.layer_map import layer_map


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(4, 12, (3, 6, 9, 12)), (3, 6, (2, 4, 6)), (1, 12, (12,)), (6, 6, (1, 2, 3, 4, 5, 6)), (5, 12, (2, 5, 7, 10, 12))],
)
def test_uniform_is_the_published_map(student: int, teacher: int, expected: tuple[int, ...]) -> None:
    assert layer_map("uniform", student, teacher) == expected


def test_uniform_for_every_pair_of_depths() -> None:
    for teacher in range(1, 26):
        for student in range(1, 31):
            mapped = layer_map("uniform", student, teacher)
            assert len(mapped) == student
            assert mapped[-1] == teacher
            assert list(mapped) == sorted(mapped)
            assert mapped[0] >= 1


def test_last() -> None:
    assert layer_map("last", 3, 12) == (10, 11, 12)
    assert layer_map("last", 6, 6) == (1, 2, 3, 4, 5, 6)
    with pytest.raises(UserError, match=r"distill\.layer_map is 'last' but student\.layers is 7"):
        layer_map("last", 7, 6)


def test_explicit() -> None:
    assert layer_map([1, 6, 6], 3, 6) == (1, 6, 6)
    with pytest.raises(UserError, match=r"distill\.layer_map names 2 teacher layers"):
        layer_map((1, 2), 3, 6)
    for outside in (0, 7):
        with pytest.raises(UserError, match=rf"distill\.layer_map names layer {outside} .* 1 to 6"):
            layer_map((1, 2, outside), 3, 6)
