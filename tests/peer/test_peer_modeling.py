"""transformers' common model tests on RefBERT: as plain BERT, reading references, and reading them by a gate."""

import unittest
from typing import Any, ClassVar

import torch
from transformers_tests import test_modeling_common as common

from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel

# The common tests tell a base model, which has no loss, from a classifier by transformers' own lists of names.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "refbert": RefBertModel.__name__}
common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = {
    **common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "refbert": RefBertForSequenceClassification.__name__,
}


class RefBertModelTester:
    """What the common tests ask of a model: its sizes, a small config, and inputs."""

    batch_size = 13
    seq_length = 7
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = 99
    reference_size = 20
    reference_length = 5

    def __init__(self, parent: unittest.TestCase, reference_count: int, variant: dict[str, Any]) -> None:
        self.parent = parent
        self.reference_count = reference_count
        self.variant = variant
        # Columns of the first layer's attention: every reference token is a further key.
        self.key_length = self.seq_length + reference_count * self.reference_length

    def get_config(self) -> RefBertConfig:
        return RefBertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            hidden_act="gelu",
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            max_position_embeddings=50,
            reference_count=self.reference_count,
            reference_size=self.reference_size,
            **self.variant,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[RefBertConfig, dict[str, Any]]:
        shape = (self.batch_size, self.seq_length)
        inputs: dict[str, Any] = {
            "input_ids": torch.randint(0, self.vocab_size, shape),
            "token_type_ids": torch.randint(0, 2, shape),
            "attention_mask": torch.ones(shape, dtype=torch.long),
        }
        inputs["attention_mask"][1:, -2:] = 0
        if self.reference_count:
            states = (self.batch_size, self.reference_count, self.reference_length)
            inputs["reference_keys"] = torch.randn(*states, self.reference_size)
            inputs["reference_values"] = torch.randn(*states, self.reference_size)
            inputs["reference_mask"] = torch.ones(states, dtype=torch.long)
            inputs["reference_mask"][0, 1, 3:] = 0
            inputs["reference_mask"][1] = 0
        return self.get_config(), inputs


class CommonTests(common.ModelTesterMixin):
    reference_count = 0
    variant: ClassVar[dict[str, Any]] = {}
    all_model_classes = (RefBertModel, RefBertForSequenceClassification)
    # Otherwise skipped for files without a copyright year.
    test_can_init_all_missing_weights_before_2023 = True
    # Inputs that the comparison of eager and sdpa attention passes on beside the ids.
    additional_model_inputs = ("reference_keys", "reference_values", "reference_mask")

    def setUp(self) -> None:
        self.model_tester = RefBertModelTester(self, self.reference_count, self.variant)


class RefBertModelTest(CommonTests, unittest.TestCase):
    """Without references."""


class RefBertWithReferencesModelTest(CommonTests, unittest.TestCase):
    """With two references for each sample, some of them masked."""

    reference_count = 2


class RefBertWithGateModelTest(CommonTests, unittest.TestCase):
    """With a gate before the references, which are not normalised, and TinyBERT's classifier."""

    reference_count = 2
    variant: ClassVar[dict[str, Any]] = {
        "reference_gate": "token",
        "reference_gate_start": -1.0,
        "reference_normalize": False,
        "classifier_head": "tinybert",
    }
