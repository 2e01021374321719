"""The only code that knows how an artefact lies on disk."""

from refbert_dist.artifacts.claims import WorkList
from refbert_dist.artifacts.damage import Damage
from refbert_dist.artifacts.disk import (
    atomic_path,
    make_folder,
    read_json,
    require_free_space,
    share_with_group,
    write_json,
    write_text,
)
from refbert_dist.artifacts.keys import changed_file, describe_files, hash_file, hash_strings, recipe_key
from refbert_dist.artifacts.seals import sealed
from refbert_dist.artifacts.shards import Artifact, shard_name
from refbert_dist.artifacts.tensors import map_tensors, save_tensors

__all__ = [
    "Artifact",
    "Damage",
    "WorkList",
    "atomic_path",
    "changed_file",
    "describe_files",
    "hash_file",
    "hash_strings",
    "make_folder",
    "map_tensors",
    "read_json",
    "recipe_key",
    "require_free_space",
    "save_tensors",
    "sealed",
    "shard_name",
    "share_with_group",
    "write_json",
    "write_text",
]
