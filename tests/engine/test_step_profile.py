import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from refbert_dist.costs.work import Shape, forward
from refbert_dist.engine.profile import COUNTED, TRACED, Profile, counting_flops, matrix_rate
from refbert_dist.engine.timing import StepTimer

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("padded", [False, True])
def test_the_counter_counts_what_the_formulas_say(padded: bool) -> None:
    shape = Shape(layers=2, hidden=48, heads=4, intermediate=96, embeddings=100)
    config = BertConfig(
        vocab_size=80,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[0, 15:] = 1 - int(padded)
    with counting_flops() as counter:
        states = model(torch.ones_like(mask), mask).last_hidden_state
    expected = forward(shape, mask.numel(), 20).flops
    assert counter.get_total_flops() == expected
    with counting_flops() as counter:
        states.square().sum().backward()
    # Twice as much, but what attention computes anew because the forward pass does not keep it.
    assert 2 * expected <= counter.get_total_flops() <= 2.2 * expected


def test_a_report_says_where_the_time_went(tmp_path: Path) -> None:
    linear = nn.Linear(64, 32, bias=False, device=DEVICE)
    inputs = torch.ones(10, 64, device=DEVICE)
    profile, timer = Profile(tmp_path / "profile", "job", DEVICE), StepTimer(DEVICE, exact=True)
    for step in range(TRACED.stop + 4):
        tokens = 5 if step == COUNTED else 10
        with profile.step(step, tokens), timer.part("forward"):
            linear(inputs[:tokens])
        timer.end_step(tokens)
        if step == TRACED[-1]:
            timer.restart()
    text = profile.report(timer, "fp32")
    lines = text.splitlines()
    assert lines[0].startswith("job: 4 steps of ")
    assert {line.split()[0] for line in lines[1:3]} == {"forward", "other"}
    assert f"  {2 * 10 * 64 * 32 / 1e9:.3g} GFLOP a step" in lines[-1]
    written = (tmp_path / "profile" / "job.txt").read_text()
    assert written.startswith(text) and "aten::mm" in written
    events = json.loads((tmp_path / "profile" / "job.trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "aten::mm" for event in events) == len(TRACED)


def test_the_rate_of_matrix_products_is_measured() -> None:
    assert 1e8 < matrix_rate(CPU, "fp32") < 1e16
