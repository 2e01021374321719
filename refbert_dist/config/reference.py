"""The page of all settings, made from their docstrings: ``python -m refbert_dist.config.reference``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from refbert_dist.config.load import section_of
from refbert_dist.config.schema import Experiment, Section

HEADER = """# Every setting

Made by `python -m refbert_dist.config.reference > docs/configuration.md`; a test keeps it up to date.
Set a field in the experiment file, or on the command line as `section.field=value`.
"""


def reference() -> str:
    """The whole page as Markdown."""
    return HEADER + "".join(_section(Experiment, None, ""))


def _section(section: type[Section], defaults: Section | None, prefix: str) -> Iterator[str]:
    nested = {name: inner for name, field in section.model_fields.items() if (inner := section_of(field.annotation))}
    if set(nested) != set(section.model_fields):
        yield f"\n## `{prefix.rstrip('.') or 'experiment'}`\n\n" + table(section, defaults, prefix)
    for name, inner in nested.items():
        default = section.model_fields[name].default
        yield from _section(inner, default if isinstance(default, Section) else None, f"{prefix}{name}.")


def table(section: type[Section], defaults: Section | None = None, prefix: str = "") -> str:
    """A section's fields, but for those that are sections themselves, as a Markdown table.

    Args:
        section: the kind of section.
        defaults: to show instead of its own.
        prefix: before each name.
    """
    rows = [
        f"| `{prefix}{name}` | {_default(defaults, name, field)} | {_text(field)} |\n"
        for name, field in section.model_fields.items()
        if section_of(field.annotation) is None
    ]
    return "| field | default | meaning |\n| --- | --- | --- |\n" + "".join(rows)


def _default(defaults: Section | None, name: str, field: FieldInfo) -> str:
    if defaults is None and field.is_required():
        return "**required**"
    # A section's own default may differ from its class's: finetune and distill.general are both OptimConfig.
    value: Any = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
    return f"`{value if isinstance(value, str | Path) else json.dumps(value)}`"


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
