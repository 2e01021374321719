"""Each order of imports in a process of its own, because registration happens once."""

import subprocess
import sys
from pathlib import Path

import pytest

from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertModel

PROBE = """
config = transformers.AutoConfig.for_model(
    "refbert", vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)
print(type(transformers.AutoModel.from_config(config)).__name__)
print(type(transformers.AutoModelForSequenceClassification.from_config(config)).__name__)
"""


def run(code: str) -> list[str]:
    # Looking for garbage among what is imported is a quarter of the time.
    done = subprocess.run([sys.executable, "-c", f"import gc; gc.disable()\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "imports",
    [
        "import refbert_dist, transformers",
        "import transformers; transformers.AutoModel; import refbert_dist",
        "import transformers, refbert_dist; transformers.AutoTokenizer",
        # These load the auto module in the middle of another one.
        "import transformers, refbert_dist; transformers.BertModel",
        "import transformers, refbert_dist.models.modeling_refbert",
        "import refbert_dist.models.modeling_refbert, transformers",
        "import refbert_dist.models.configuration_refbert, transformers",
        "import transformers; transformers.AutoModel; import refbert_dist.models.configuration_refbert",
    ],
)
def test_auto_classes_know_refbert(imports: str) -> None:
    assert run(imports + PROBE) == ["RefBertModel", "RefBertForSequenceClassification"]


def test_saved_model_is_found_by_its_type(tmp_path: Path) -> None:
    RefBertModel(
        RefBertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    load = f"import refbert_dist, transformers; model = transformers.AutoModel.from_pretrained({str(tmp_path)!r})"
    assert run(load + "; print(type(model).__name__)") == ["RefBertModel"]


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)"
    assert run(f"import sys, refbert_dist; print({heavy})") == ["set()"]
