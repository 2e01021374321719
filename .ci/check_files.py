"""Check files before they are committed: small, ended by a newline, no merge conflict, nothing like a secret.

Usage: python .ci/check_files.py FILE...
"""

import re
import sys
from pathlib import Path

MAX_BYTES = 500_000
SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bhf_[A-Za-z]{34}\b"
    rb"|\bxox[abprs]-[0-9A-Za-z-]{10,}|://[^/\s:@{}$<>]+:[^/\s:@{}$<>]{3,}@"
)
CONFLICT = re.compile(rb"^(<{7} |>{7} )", re.MULTILINE)


def faults(path: Path) -> list[str]:
    """What is wrong with a file."""
    content = path.read_bytes()
    found = []
    if len(content) > MAX_BYTES:
        found.append(f"{len(content)} bytes; at most {MAX_BYTES} belong in the repository")
    if b"\0" in content:
        return found
    if content and not content.endswith(b"\n"):
        found.append("no newline at its end")
    if content.endswith(b"\n\n"):
        found.append("empty lines at its end")
    if CONFLICT.search(content):
        found.append("a merge conflict")
    if SECRETS.search(content):
        found.append("something that looks like a secret")
    return found


def main(names: list[str]) -> int:
    """Print the faults of the named files; returns 1 if there are any."""
    bad = [f"{name}: {fault}" for name in names if Path(name).is_file() for fault in faults(Path(name))]
    sys.stderr.write("".join(f"{line}\n" for line in bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
