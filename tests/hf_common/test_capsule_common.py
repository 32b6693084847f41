"""The common tests of transformers over the capsules."""

from __future__ import annotations

import unittest
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from common_testers import CommonTestsWithoutHiddenStates, ModelTester
from torch import Tensor
from transformers import PreTrainedModel
from transformers.testing_utils import torch_device

from hfblog import CapsuleConfig, CapsuleForImageClassification, CapsuleModel

pytestmark = pytest.mark.hf_suite


class CapsuleTester(ModelTester):
    model_classes = (CapsuleModel, CapsuleForImageClassification)
    common_properties = ()
    settings: ClassVar[dict[str, Any]] = {
        "image_size": 8,
        "conv_channels": [6, 8],
        "pool_after": None,
        "capsule_dim": 5,
        "weight_layout": "factored",
    }

    def get_inputs(self, config: CapsuleConfig) -> dict[str, Tensor]:
        return {"pixel_values": torch.rand(self.batch_size, 1, 8, 8, device=torch_device)}

    def get_labels(self, model_class: type[PreTrainedModel]) -> dict[str, Tensor]:
        if model_class is CapsuleModel:
            return {}
        return {"labels": torch.zeros(self.batch_size, dtype=torch.long, device=torch_device)}


class CapsuleTest(CommonTestsWithoutHiddenStates, unittest.TestCase):
    """Without `TrainingTesterMixin`, which knows how to make a batch of text only."""

    model_tester_class = CapsuleTester
    has_attentions = False
    # There is no vocabulary.
    test_resize_embeddings = False

    @unittest.skip("images have no input embeddings")
    def test_model_get_set_embeddings(self) -> None:
        pass

    @unittest.skip("images have no input embeddings")
    def test_inputs_embeds(self) -> None:
        pass

    def test_training(self) -> None:
        # without the base model, which has no loss; transformers knows that of its own base models only
        with patch.object(self, "all_model_classes", self.all_model_classes[1:]):
            super().test_training()


class CapsNetTester(CapsuleTester):
    settings = {name: value for name, value in CapsuleConfig.presets["capsnet"].items() if name != "num_labels"} | {
        "image_size": 8,
        "conv_channels": [6, 8],
        "conv_kernel_sizes": 3,
        "primary_capsule_dim": 4,
        "decoder_hidden_sizes": [7],
    }


class CapsNetTest(CapsuleTest):
    model_tester_class = CapsNetTester
