import pytest

from refbert_dist.engine.agreement import Agreement
from refbert_dist.engine.distributed import process_group
from refbert_dist.engine.stop import StopFlag


@pytest.mark.parametrize(
    ("pace_s", "asked_at"),
    [(0.0, [101, 111, 121]), (0.01, [101, 111, 121]), (2.0, list(range(101, 125, 2))), (60.0, list(range(101, 125)))],
)
def test_processes_ask_each_other_about_every_five_seconds(pace_s: float, asked_at: list[int]) -> None:
    with process_group(60):
        flag = StopFlag()
        agreement = Agreement(flag, 100)
        assert not any(agreement.reached(step, (step - 100) * pace_s) for step in range(101, 125))
        flag.requested, agreement = True, Agreement(flag, 100)
        assert [step for step in range(101, 125) if agreement.reached(step, (step - 100) * pace_s)] == asked_at
