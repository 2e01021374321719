from pathlib import Path

from launchers.watch.stage_progress import progress
from refbert_dist.tracking.progress import Progress


def test_a_stage_is_as_far_as_the_newest_of_what_it_works_on(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert progress(tmp_path, "cache-task") is None
    for name, done in (("cache-task", 7), ("cache-augmented", 3), ("cache-fold-1", 5)):
        with Progress(name, 10, "tokens", tmp_path) as shown:
            shown.update(done)
        found = progress(tmp_path, "cache-task")
        assert found and (found["name"], found["done"]) == (name, done)
    assert progress(tmp_path, "cache-general") is None
