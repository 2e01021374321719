"""Make ``AutoModel`` and its kin know RefBERT, without importing torch or transformers before the user does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO_MODULE = "transformers.models.auto.configuration_auto"
MODEL_MODULES = ("refbert_dist.models.configuration_refbert", "refbert_dist.models.modeling_refbert")


def register() -> None:
    """Register RefBERT's configuration and models with transformers' auto classes. Imports torch and transformers."""
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from refbert_dist.models.configuration_refbert import RefBertConfig
    from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification, RefBertModel

    AutoConfig.register("refbert", RefBertConfig, exist_ok=True)
    AutoModel.register(RefBertConfig, RefBertModel, exist_ok=True)
    AutoModelForSequenceClassification.register(RefBertConfig, RefBertForSequenceClassification, exist_ok=True)


class _RegisterAfterImport(MetaPathFinder):
    """Registers as soon as transformers' auto classes are loaded and no import of transformers is under way.

    transformers imports its auto module from inside others, BERT's among them. Registering right then would import
    those again while they are half executed, so the outermost import is waited for.
    """

    def __init__(self) -> None:
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "transformers" and fullname not in MODEL_MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._watched(spec.loader.exec_module)  # type: ignore[assignment,method-assign]
        return spec

    def _watched(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def execute_then_register(module: ModuleType) -> None:
            self._thread.depth = getattr(self._thread, "depth", 0) + 1
            try:
                execute(module)
            finally:
                self._thread.depth -= 1
            if self._thread.depth == 0 and AUTO_MODULE in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                register()

        return execute_then_register


def register_when_imported() -> None:
    """Register now if transformers' auto classes are loaded already, otherwise as soon as they are."""
    if AUTO_MODULE in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())
