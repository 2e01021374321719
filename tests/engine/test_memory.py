"""Memory that really runs out, and what is said then."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny import MINILM, tiny_experiment, tiny_values
from transformers import AutoTokenizer, BertConfig, BertModel

from refbert_dist import pipeline
from refbert_dist.config import parse_experiment
from refbert_dist.engine.memory import caching_advice, explain_out_of_memory, training_advice
from refbert_dist.errors import UserError
from refbert_dist.models.locate import resolve_model
from refbert_dist.rundir import MAY_CHANGE

ALLOCATIONS = {
    "a tensor": "torch.empty(1 << 40)",
    "a list of tensors": "torch.zeros(1).expand(1 << 28).unbind()",
    "an array": "np.empty(1 << 40)",
    "a list": "[0] * (1 << 40)",
    "a file of tensors": "load_file(sys.argv[1])",
    "a mapped file": "np.memmap(sys.argv[1])",
}
CODE = """
import resource, sys
import numpy as np
import torch
from safetensors.torch import load_file
from refbert_dist.engine.memory import explain_out_of_memory
from refbert_dist.errors import UserError

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + 200_000_000
for code in sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    try:
        with explain_out_of_memory("the work", "lower it"):
            eval(code)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        print(error)
print(f"{limit / 1e9:.1f} GB")
"""


def test_whatever_asks_for_it_memory_that_runs_out_is_one_sentence(tmp_path: Path) -> None:
    large = tmp_path / "large.safetensors"
    header = b'{"a": {"dtype": "U8", "shape": [4000000000], "data_offsets": [0, 4000000000]}}'
    with large.open("wb") as file:  # sparse: it takes no room on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4_000_000_000)
    command = [sys.executable, "-c", CODE, str(large), *ALLOCATIONS.values()]
    *found, limit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    sentence = f"the work needs more memory than this process may have ({limit}, ulimit -v); lower it"
    assert dict(zip(ALLOCATIONS, found, strict=True)) == dict.fromkeys(ALLOCATIONS, sentence)


def test_without_a_limit_it_is_the_machines() -> None:
    total = f"{os.sysconf('SC_PHYS_PAGES') * resource.getpagesize() / 1e9:.1f} GB"
    words = rf"than this machine has left \({total} in all\); lower it"
    with pytest.raises(UserError, match=words), explain_out_of_memory("the work", "lower it"):
        torch.empty(1 << 60)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
    ],
    ids=["torch", "CUDA", "cuBLAS", "NCCL"],
)
def test_a_device_is_named_with_its_size(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    properties = SimpleNamespace(name="NVIDIA A100", total_memory=85_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: {1: properties}[number])
    words = r"^the work needs more memory than GPU 1 \(NVIDIA A100, 85\.0 GB\) has left; lower it$"
    with pytest.raises(UserError, match=words), explain_out_of_memory("the work", "lower it"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OSError(errno.ENOSPC, "No space left on device"),
        UserError("engine.precision is wrong"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as found, explain_out_of_memory("the work", "lower it"):
        raise error
    assert found.value is error


def test_the_advice_holds(tmp_path: Path) -> None:
    """What a run may change it may change, and what takes another one is said to."""
    exp = tiny_experiment(tmp_path, "engine.micro_batch_size=4", "engine.zero_stage=1")
    for advice, settings in (
        (training_advice(exp), ("engine.micro_batch_size", "engine.zero_stage", "engine.precision")),
        (
            caching_advice(exp),
            ("cache.batch_tokens", "cache.shard_tokens", "cache.group_processes", "cache.precision"),
        ),
    ):
        ways = advice.split(", or ")
        for setting in settings:
            (way,) = (way for way in ways if setting in way)
            assert ("takes another run.dir" in way) == (setting not in MAY_CHANGE), way


def test_only_what_is_left_to_do_is_advised(tmp_path: Path) -> None:
    least = ("engine.micro_batch_size=1", "engine.zero_stage=3", "engine.precision=bf16", "cache.precision=bf16")
    exp = tiny_experiment(tmp_path, *least)
    assert training_advice(exp) == "take a device with more memory"
    assert "cache.precision" not in caching_advice(exp)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (8_000_000_000, 8_000_000_000))


@pytest.mark.dist
def test_the_sentence_arrives_at_the_command_line(tmp_path: Path) -> None:
    """Two processes, and a feed-forward layer whose output for all tokens at once is more than one may have."""
    wide = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=1 << 18,
        max_position_embeddings=96,
    )
    BertModel(wide).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(resolve_model(MINILM)).save_pretrained(tmp_path / "wide")
    values = tiny_values(tmp_path) | {"task": None, "launch": {"processes": 2, "threads": 1}}
    values["teacher"] = {"model": str(tmp_path / "wide")}
    values["cache"] |= {"batch_tokens": 1_000_000, "shard_tokens": 1_000_000, "group_processes": 2}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(values))
    pipeline.run(parse_experiment(values), ["prepare"])
    command = [sys.executable, "-m", "launchers.cli", "cache", "build", str(tmp_path / "exp.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "refbert: caching the teacher's states needs more memory than this process may have (8.0 GB, ulimit -v); "
        "lower cache.batch_tokens (now 1000000) or cache.shard_tokens (now 1000000), which begins the cache anew, or "
        "raise cache.group_processes (now 2), or set cache.precision=bf16, which takes another run.dir"
    )
    assert "Traceback" not in done.stderr
