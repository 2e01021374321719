"""How informative the references of every retriever are: BM25 with and without stop words, dense by the first and the
last teacher layer, random.

    python benchmarks/informativeness.py EXP.yaml [FIELD=VALUE]...

Prepares what is missing in the experiment's cache, and looks up with the experiment's own counts.
"""

import sys

from rich.console import Console

from launchers.tables import show_neighbours
from refbert_dist.config import load_experiment
from refbert_dist.data.tokens import build_tokens, parts
from refbert_dist.models.locate import teacher_info
from refbert_dist.references.lookup import build_neighbours
from refbert_dist.tracking.quiet import quiet_libraries


def main() -> None:
    quiet_libraries()
    given = load_experiment(sys.argv[1], sys.argv[2:])
    last = teacher_info(given.teacher.model).layers
    for part in parts(given):
        build_tokens(given, part)
    changes = (
        ("retriever=bm25", "stop_words=english"),
        ("retriever=bm25", "stop_words=none"),
        ("retriever=dense", "dense_layer=0"),
        ("retriever=dense", f"dense_layer={last}"),
        ("retriever=random",),
    )
    manifests = []
    for change in changes:
        exp = load_experiment(sys.argv[1], [*sys.argv[2:], *(f"references.{item}" for item in change)])
        manifests += [build_neighbours(exp, part) for part in parts(exp)]
    show_neighbours(manifests, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
