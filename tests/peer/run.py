"""Run transformers' own common model tests on the RefBERT classes: ``python tests/peer/run.py [pytest arguments]``.

The tests are not in the installed package, only in the source archive of the same version, which is fetched from the
package index once and unpacked outside the repository (``$REFBERT_PEER_DIR``, default ``~/.cache/refbert-peer``).
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "transformers_tests"
# The archive holds only the top of transformers' test tree, yet its modules import these bases of further tests
# (exporting, text generation), neither of which concerns an encoder. They are left empty.
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def unpack(tree: Path) -> None:
    """Fill ``tree``; it appears under its name only when complete."""
    name = f"transformers-{version('transformers')}"
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        download, made = Path(scratch) / "download", Path(scratch) / "made"
        pip("download", "--no-deps", "--no-binary=transformers", f"--dest={download}", name.replace("-", "=="))
        with tarfile.open(download / f"{name}.tar.gz") as archive:
            members = [m for m in archive.getmembers() if m.name.startswith(f"{name}/tests/")]
            archive.extractall(download, members, filter="data")
        made.mkdir()
        (download / name / "tests").rename(made / PACKAGE)
        for path, text in {"__init__.py": "", **STAND_INS}.items():
            target = made / PACKAGE / path
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                target.write_text(text)
        pip("install", "--no-deps", f"--target={made}", "parameterized")
        made.rename(tree)


def main() -> int:
    root = Path(os.environ.get("REFBERT_PEER_DIR", "~/.cache/refbert-peer")).expanduser()
    tree = root / f"transformers-{version('transformers')}"
    if not tree.is_dir():
        unpack(tree)
    here = Path(__file__).parent
    paths = [str(tree), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "REFBERT_PEER_TREE": str(tree),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    # The peer's markers are not ours, so the repository's strict options are not used.
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "-q", "-W", "ignore"]
    command = [sys.executable, "-m", "pytest", *options, str(here), *sys.argv[1:]]
    return subprocess.run(command, env=environment, cwd=tree).returncode


if __name__ == "__main__":
    sys.exit(main())
