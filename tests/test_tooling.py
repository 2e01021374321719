import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def check_files(path):
    command = [sys.executable, ROOT / ".ci" / "check_files.py", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"x" * 500_000 + b"\n", "500001 bytes"),
        (b"no end", "no newline"),
        (b"end\n\n", "empty lines"),
        (b"<<<<<<< " + b"HEAD\n", "merge conflict"),
        (b"-----BEGIN RSA " + b"PRIVATE KEY-----\n", "secret"),
        (b"https://user:" + b"hunter2@example.org/\n", "secret"),
        (b"gh" + b"p_" + b"a" * 36 + b"\n", "secret"),
    ],
)
def test_a_file_with_a_fault_is_named(tmp_path, content, fault):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    done = check_files(path)
    assert done.returncode == 1
    assert f"{path}: " in done.stderr and fault in done.stderr


@pytest.mark.parametrize("content", [b"", b"fine\n", b"\0binary", b"http://host:5000/a@b\n", b"a: 1  # see http://x\n"])
def test_a_good_file_passes(tmp_path, content):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    assert check_files(path).returncode == 0


def test_every_requirement_has_a_tested_version_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for requirement in map(Requirement, wanted):
        version = tested.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"


@pytest.mark.parametrize(("marker", "required", "code"), [("faults", "1", 1), ("faults", "0", 0), ("gpu", "1", 0)])
def test_skips_of_what_must_run_fail_only_when_all_is_required(tmp_path, marker, required, code):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        f"import pytest\n@pytest.mark.{marker}\ndef test_it():\n    pytest.skip('not here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "REFBERT_REQUIRE_ALL": required},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == code, done.stdout
    if code:
        assert "was skipped, which REFBERT_REQUIRE_ALL=1 forbids" in done.stdout and "not here" in done.stdout


def test_make_names_its_targets():
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "lint", "wheel"):
        assert f"make {target} " in done.stdout


def test_make_setup_refuses_an_old_python(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", tmp_path, "setup", f"PYTHON={old}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "must be Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
