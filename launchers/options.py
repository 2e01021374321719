"""Arguments and options that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

ExperimentFile = Annotated[Path, typer.Argument(metavar="EXP.yaml", help="Experiment file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as student.layers=3.")
]
On = Annotated[
    str, typer.Option("--on", metavar="PROFILE", help="Where to run: local, in-process, or a profile's YAML file.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print configuration, plan and sizes; start nothing.")]

Profiled = Annotated[
    bool,
    typer.Option("--profile", help="Report where the time of training steps goes; the same as engine.profile=true."),
]
Wait = Annotated[bool, typer.Option("--wait", help="On a cluster: stay until the jobs have ended.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run.")]

BatchSize = Annotated[int, typer.Option(min=1, help="Texts in one forward pass.")]
ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="An exported model folder.")]
References = Annotated[
    int | None,
    typer.Option(min=0, help="References to read for each text, instead of as many as in training; 0 needs no bank."),
]
RuntimeName = Annotated[
    Literal["torch", "onnx", "onnx-int8"],
    typer.Option(help="What computes; the latter two need a model exported with --onnx."),
]
Device = Annotated[str | None, typer.Option(help="As torch names it; by default a GPU if there is one.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Number format in which everything is computed.")
]


@dataclass(frozen=True)
class Where:
    """Where a command runs, and how far."""

    on: str = "local"
    dry_run: bool = False
    wait: bool = False
