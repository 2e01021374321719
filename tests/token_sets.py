"""Token sets made by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refbert_dist.artifacts import Artifact, save_tensors
from refbert_dist.data.token_set import TokenSet


def token_set(folder: Path, samples: Sequence[Sequence[int]], token_type: int = 0) -> TokenSet:
    """One shard of samples with these token ids, each its own document."""
    arrays = {
        "input_ids": np.concatenate(samples).astype(np.int32),
        "token_type_ids": np.full(sum(map(len, samples)), token_type, np.uint8),
        "offsets": np.cumsum([0, *map(len, samples)]),
        "documents": np.arange(len(samples)),
    }
    artifact = Artifact(folder)
    artifact.commit("shard-0", {"safetensors": save_tensors(arrays)}, {"samples": len(samples)})
    artifact.finish(["shard-0"], {"fingerprint": "f"})
    return TokenSet.open(artifact)
