"""A model folder loads anywhere, and what was changed in it is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finished import PAIRS, SINGLES, exported

from refbert_dist.errors import RefusedError, UserError
from refbert_dist.inference.bm25s_lookup import References
from refbert_dist.inference.folder import verify_folder
from refbert_dist.inference.pipeline import RefBertPipeline

WITHOUT_PACKAGE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "refbert_dist":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
folder, texts = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, folder)
import torch, transformers
from bm25s_lookup import References
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
references = References(folder)
answers = []
for text in texts:
    tokens = tokenizer(*text, truncation="longest_first", return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        answers.append(model(**tokens, **references(*text)).logits.softmax(-1)[0].tolist())
assert not [name for name in sys.modules if name.startswith("refbert_dist")]
print(json.dumps([answers, type(model).__module__]))
"""


@pytest.mark.parametrize(("kind", "codec"), [("singles", "fp16"), ("pairs", "int8")])
def test_it_answers_where_the_package_is_not_installed(tmp_path: Path, kind: str, codec: str) -> None:
    texts = {"singles": SINGLES, "pairs": PAIRS}[kind]
    folder = exported(tmp_path / "model", texts[:20], codec=codec)
    # Inputs of which none contains a known one: of the rules about that, the copied file knows the plainest.
    asked = [[part for part in text if part is not None] for text in texts[20:]]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, str(folder), json.dumps(asked)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, module = json.loads(done.stdout)
    assert module.startswith("transformers_modules.")
    expected = RefBertPipeline(folder, device="cpu")(asked)
    for mine, its in zip(expected, answers, strict=True):
        assert mine["probabilities"] == pytest.approx(its, abs=2e-6)
    assert sum(len(answer["references"]) for answer in expected) > len(asked)


def test_the_copied_lookup_finds_the_same(tmp_path: Path) -> None:
    folder = exported(tmp_path, SINGLES[:20])
    bank, copied = RefBertPipeline(folder, device="cpu").bank, References(folder)
    assert bank is not None
    for text, _ in SINGLES:
        assert copied.lookup(text) == [row for row in bank.lookup([(text, None)])[0].tolist() if row >= 0]
    nothing = copied("zzz")
    assert nothing["reference_mask"].sum() == 0 and nothing["reference_keys"].shape[:3] == (1, 1, 1)


def test_with_the_package_the_installed_class_is_used(tmp_path: Path) -> None:
    """Whether or not code in the folder is trusted."""
    from transformers import AutoModelForSequenceClassification

    import refbert_dist  # noqa: F401  (registers)

    folder = exported(tmp_path, SINGLES[:20])
    for options in ({}, {"trust_remote_code": True}):
        model = AutoModelForSequenceClassification.from_pretrained(folder, **options)
        assert type(model).__module__ == "refbert_dist.models.modeling_refbert"
        again = tmp_path / "again"
        model.save_pretrained(again)
        assert json.loads((again / "config.json").read_text())["auto_map"]


def test_projected_and_unprojected_references_agree() -> None:
    from finished import config

    from refbert_dist.models.modeling_refbert import RefBertForSequenceClassification

    torch.manual_seed(0)
    model = RefBertForSequenceClassification(config()).eval()
    ids, keys, values = torch.randint(5, 100, (3, 9)), torch.randn(3, 2, 7, 32), torch.randn(3, 2, 7, 32)
    with torch.no_grad():
        plain = model(ids, reference_keys=keys, reference_values=values).logits
        keys, values = model.project_references(keys, values)
        projected = model(ids, reference_keys=keys, reference_values=values, references_projected=True).logits
    assert (plain - projected).abs().max() <= 1e-5


def test_every_file_is_in_a_manifest(tmp_path: Path) -> None:
    folder = exported(tmp_path, SINGLES[:20])
    manifest, bank = (json.loads((folder / name).read_text()) for name in ("manifest.json", "bank/bank.json"))
    named = {*manifest["files"], *(f"bank/{name}" for name in bank["files"]), "manifest.json", "bank/bank.json"}
    assert named == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in named if name.endswith((".bin", ".pkl", ".pt"))]


def test_what_has_changed_is_named(tmp_path: Path) -> None:
    folder = exported(tmp_path, SINGLES[:20])
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "configuration_refbert.py",
        "modeling_refbert.py",
    ):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(RefusedError, match=f"the model .* is damaged: {name} has changed; export the model again"):
            RefBertPipeline(folder)
        path.unlink()
        with pytest.raises(RefusedError, match=f"the model .* lacks {name}; export the model again"):
            RefBertPipeline(folder)
        path.write_bytes(content)
    index = folder / "bank" / "index-0" / "words.safetensors"
    index.write_bytes(index.read_bytes()[:-1] + b"\xff")
    with pytest.raises(RefusedError, match=r"damaged: index-0/words\.safetensors has changed"):
        RefBertPipeline(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(RefusedError, match=r"manifest\.json has changed"):
        verify_folder(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        verify_folder(folder)
