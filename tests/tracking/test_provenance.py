import importlib.metadata
import multiprocessing
import subprocess
import sys

import pytest

from refbert_dist.errors import RefusedError
from refbert_dist.tracking.files import read_json_or_none
from refbert_dist.tracking.provenance import run_id, source_commit, write_provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_every_start_appends_an_entry_and_the_run_keeps_its_id(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["refbert", "run", "a.yaml"])
    first = write_provenance(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["refbert", "resume", "run"])
    second = write_provenance(tmp_path / "run")
    assert read_json_or_none(tmp_path / "run" / "provenance.json") == [first, second]
    assert first["argv"] == ["refbert", "run", "a.yaml"] and second["argv"][1] == "resume"
    assert first["id"] != second["id"]
    assert run_id(tmp_path / "run") == first["id"]


def test_versions_come_from_the_installed_packages_without_importing_them(tmp_path):
    code = """
import json, sys
from refbert_dist.tracking.provenance import write_provenance
json.dump(write_provenance(sys.argv[1]), sys.stdout)
sys.exit(any(name in sys.modules for name in ("torch", "deepspeed", "transformers", "mlflow", "datasets", "numpy")))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    (entry,) = read_json_or_none(tmp_path / "provenance.json")
    assert entry["packages"]["torch"] == importlib.metadata.version("torch")
    assert entry["packages"]["deepspeed"] == importlib.metadata.version("deepspeed")
    assert entry["version"] == importlib.metadata.version("refbert-dist")


def test_commit_and_changes_of_the_checkout_are_seen(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    assert source_commit(package) == (None, None)

    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit, dirty = source_commit(package)
    assert commit is not None and len(commit) == 40 and dirty is False

    (package / "__init__.py").write_text("a = 2\n")
    assert source_commit(package) == (commit, True)


def test_an_installed_package_inside_another_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "tracked.txt").write_text("x")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    package = tmp_path / ".venv" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert source_commit(package) == (None, None)


def test_starts_at_the_same_moment_lose_no_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    starters = [context.Process(target=write_provenance, args=(tmp_path,)) for _ in range(6)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(read_json_or_none(tmp_path / "provenance.json")) == 6


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"provenance\.json"):
        run_id(tmp_path)
