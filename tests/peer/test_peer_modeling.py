"""transformers' common model tests on RefBERT, once as plain BERT and once reading references."""

import copy
import unittest
from typing import Any

import torch
from transformers_tests.test_modeling_common import ModelTesterMixin

from refbert_dist.models.modeling_refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel


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

    def __init__(self, parent: unittest.TestCase, reference_count: int) -> None:
        self.parent = parent
        self.reference_count = reference_count

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


class CommonTests(ModelTesterMixin):
    reference_count = 0
    all_model_classes = (RefBertModel, RefBertForSequenceClassification)

    def setUp(self) -> None:
        self.model_tester = RefBertModelTester(self, self.reference_count)

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> dict[str, Any]:
        # The mixin knows a classifier by transformers' own list of names.
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is RefBertForSequenceClassification:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        return inputs


class RefBertModelTest(CommonTests, unittest.TestCase):
    """Without references."""


class RefBertWithReferencesModelTest(CommonTests, unittest.TestCase):
    """With two references for each sample, some of them masked."""

    reference_count = 2
