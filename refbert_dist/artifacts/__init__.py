"""The only code that knows how an artefact lies on disk."""

from refbert_dist.artifacts.claims import WorkList
from refbert_dist.artifacts.disk import atomic_path, read_json, require_free_space, write_json, write_text
from refbert_dist.artifacts.keys import changed_file, describe_files, hash_file, hash_strings, recipe_key
from refbert_dist.artifacts.shards import Artifact, Damage, map_tensors, save_tensors, shard_name

__all__ = [
    "Artifact",
    "Damage",
    "WorkList",
    "atomic_path",
    "changed_file",
    "describe_files",
    "hash_file",
    "hash_strings",
    "map_tensors",
    "read_json",
    "recipe_key",
    "require_free_space",
    "save_tensors",
    "shard_name",
    "write_json",
    "write_text",
]
