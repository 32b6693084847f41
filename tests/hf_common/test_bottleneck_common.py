"""The common tests of transformers over the classifiers with a bottleneck and the autoencoder."""

from __future__ import annotations

import contextlib
import unittest
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from common_testers import CommonTests, CommonTestsWithoutHiddenStates, ModelTester
from torch import Tensor
from transformers import PreTrainedModel
from transformers.testing_utils import torch_device

from hfblog import VAEConfig, VAEModel, VIBConfig, VIBForImageClassification, VIBForSequenceClassification

pytestmark = pytest.mark.hf_suite


class BottleneckTester(ModelTester):
    common_properties = ()
    # settings under which every part is there that stays in float32
    with_all_parts: ClassVar[dict[str, Any]] = {}


class BottleneckTests(CommonTestsWithoutHiddenStates):
    """Without `TrainingTesterMixin`, which knows how to make a batch of text for a language model only."""

    has_attentions = False

    def all_parts(self) -> contextlib.AbstractContextManager:
        """The noise of a regression or of a Gaussian decoder, which stays in float32, is there for these alone."""
        tester = self.model_tester_class
        return patch.object(tester, "settings", tester.settings | tester.with_all_parts)

    def test_keep_in_fp32_modules_exist(self) -> None:
        with self.all_parts():
            super().test_keep_in_fp32_modules_exist()

    @unittest.skipUnless(
        hasattr(CommonTests, "test_keep_in_fp32_modules_strict_also_hardcode_fp32"), "came with transformers 5.24"
    )
    def test_keep_in_fp32_modules_strict_also_hardcode_fp32(self) -> None:
        with self.all_parts():
            super().test_keep_in_fp32_modules_strict_also_hardcode_fp32()


class ImageTests(BottleneckTests):
    # There is no vocabulary.
    test_resize_embeddings = False

    @unittest.skip("images have no input embeddings")
    def test_model_get_set_embeddings(self) -> None:
        pass

    @unittest.skip("images have no input embeddings")
    def test_inputs_embeds(self) -> None:
        pass


class VIBImageTester(BottleneckTester):
    with_all_parts: ClassVar[dict[str, Any]] = {"problem_type": "regression"}
    model_classes = (VIBForImageClassification,)
    settings: ClassVar[dict[str, Any]] = {
        "encoder_type": "conv",
        "image_size": 8,
        "conv_channels": [6, 8],
        "hidden_sizes": [10],
        "latent_dim": 5,
        "bottleneck": "dual",
        "target_rate": 2.0,
        "prior": "learned",
    }

    def get_inputs(self, config: VIBConfig) -> dict[str, Tensor]:
        return {"pixel_values": torch.rand(self.batch_size, 1, 8, 8, device=torch_device)}

    def get_labels(self, model_class: type[PreTrainedModel]) -> dict[str, Tensor]:
        return {"labels": torch.zeros(self.batch_size, dtype=torch.long, device=torch_device)}


class VIBImageTest(ImageTests, unittest.TestCase):
    model_tester_class = VIBImageTester


class VIBTextTester(VIBImageTester):
    model_classes = (VIBForSequenceClassification,)
    settings: ClassVar[dict[str, Any]] = {
        "encoder_type": "text_cnn",
        "vocab_size": 50,
        "embedding_size": 6,
        "num_filters": 8,
        "kernel_sizes": [2, 3],
        "latent_dim": 5,
        "prior": "mixture",
        "num_components": 4,
        "eval_mode": "sample",
    }

    def get_inputs(self, config: VIBConfig) -> dict[str, Tensor]:
        return {"input_ids": torch.randint(5, 50, (self.batch_size, 7), device=torch_device)}


class VIBTextTest(BottleneckTests, unittest.TestCase):
    model_tester_class = VIBTextTester


class VAETester(BottleneckTester):
    model_classes = (VAEModel,)
    with_all_parts: ClassVar[dict[str, Any]] = {"decoder": "gaussian"}
    settings: ClassVar[dict[str, Any]] = {
        "event_shape": [1, 5, 6],
        "num_levels": 17,
        "network": "conv",
        "conv_channels": [4, 6],
        "hidden_sizes": [10],
        "latent_dim": 4,
        "posterior": "full",
        "prior": "vamp",
        "num_components": 3,
    }

    def get_inputs(self, config: VAEConfig) -> dict[str, Tensor]:
        levels = torch.randint(config.num_levels, (self.batch_size, *config.event_shape), device=torch_device)
        return {"pixel_values": levels / (config.num_levels - 1)}


class VAETest(ImageTests, unittest.TestCase):
    model_tester_class = VAETester

    def test_batching_equivalence(self, *args: Any, **kwargs: Any) -> None:
        # It sets epsilons of norms, which are not there, also in the field `decoder`, which it takes for a configuration.
        with patch("tests.test_modeling_common.set_config_for_less_flaky_test"):
            super().test_batching_equivalence(*args, **kwargs)


class GaussianVAETester(VAETester):
    settings: ClassVar[dict[str, Any]] = {
        "event_shape": [1, 5, 6],
        "num_levels": 17,
        "hidden_sizes": [10],
        "latent_dim": 4,
        "decoder": "gaussian",
        "importance_weighted": True,
        "num_train_samples": 3,
    }


class GaussianVAETest(VAETest):
    model_tester_class = GaussianVAETester
