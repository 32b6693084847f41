"""The common tests of transformers over the term miner."""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

import pytest
import torch
from common_testers import CommonTestsWithoutHiddenStates, ModelTester
from model_examples import EXAMPLES
from torch import Tensor
from transformers.testing_utils import torch_device

from hfblog import TermMinerConfig, TermMinerModel

pytestmark = pytest.mark.hf_suite


class TermMinerTester(ModelTester):
    model_classes = (TermMinerModel,)
    common_properties = ()
    seq_length = 7
    settings: ClassVar[dict[str, Any]] = EXAMPLES["term_miner"].config

    def get_inputs(self, config: TermMinerConfig) -> dict[str, Tensor]:
        ids = torch.randint(config.num_words, (self.batch_size, self.seq_length), device=torch_device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class TermMinerTest(CommonTestsWithoutHiddenStates, unittest.TestCase):
    model_tester_class = TermMinerTester
    has_attentions = False
    # Every term has an entry in each column of a table that was counted: a lexicon does not grow by an embedding.
    test_resize_embeddings = False

    @unittest.skip("words are counted: there are no input embeddings")
    def test_model_get_set_embeddings(self) -> None:
        pass

    @unittest.skip("words are counted: there are no input embeddings")
    def test_inputs_embeds(self) -> None:
        pass
