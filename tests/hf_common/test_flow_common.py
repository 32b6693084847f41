"""The common tests of transformers over the flows."""

from __future__ import annotations

import unittest
from typing import Any
from unittest.mock import patch

import pytest
import torch
from common_testers import CommonTests, FollowsFloat64, ModelTester
from torch import Tensor
from transformers.testing_utils import torch_device

from hfblog import FlowConfig, FlowPreTrainedModel, InvertibleResNetModel, NiceFlowConfig, NiceFlowModel

pytestmark = pytest.mark.hf_suite


class FlowTester(ModelTester):
    def get_inputs(self, config: FlowConfig) -> dict[str, Tensor]:
        levels = torch.randint(config.num_levels, (self.batch_size, *config.event_shape), device=torch_device)
        return {"pixel_values": levels / (config.num_levels - 1)}


class FlowTests(FollowsFloat64, CommonTests):
    """Without `TrainingTesterMixin`, which knows how to make a batch of text only."""

    has_attentions = False
    # There is no vocabulary.
    test_resize_embeddings = False

    @unittest.skip("a flow has no hidden states: every layer's output is the whole example in other coordinates")
    def test_hidden_states_output(self) -> None:
        pass

    @unittest.skip("a flow has no hidden states and no attentions whose gradients could be kept")
    def test_retain_grad_hidden_states_attentions(self) -> None:
        pass

    @unittest.skip("a flow takes continuous values, so it has no input embeddings")
    def test_model_get_set_embeddings(self) -> None:
        pass

    def test_model_outputs_equivalence(self) -> None:
        # The test compares tuples with dictionaries, and then once more with hidden states, an argument that a flow
        # refuses; it is dropped on the way, so that the comparison itself stays.
        forward = FlowPreTrainedModel.forward

        def without_hidden_states(model: FlowPreTrainedModel, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("output_hidden_states", None)
            return forward(model, *args, **kwargs)

        with patch.object(FlowPreTrainedModel, "forward", without_hidden_states):
            super().test_model_outputs_equivalence()


class NiceFlowTester(FlowTester):
    model_classes = (NiceFlowModel,)
    # Parts of unequal size, a buffer that holds a random order, and a prior with parameters
    settings = {
        "event_shape": [1, 5, 5],
        "num_levels": 17,
        "num_coupling_layers": 3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "permutation": "random",
        "prior": "diagonal",
    }


class NiceFlowTest(FlowTests, unittest.TestCase):
    model_tester_class = NiceFlowTester


class NiceFlowPaperTester(NiceFlowTester):
    settings = NiceFlowTester.settings | NiceFlowConfig.presets["paper"]


class NiceFlowPaperTest(FlowTests, unittest.TestCase):
    model_tester_class = NiceFlowPaperTester


class NiceFlowArticleTester(NiceFlowTester):
    # reversing needs an even number of dimensions
    settings = NiceFlowTester.settings | NiceFlowConfig.presets["article"] | {"event_shape": [1, 4, 4]}


class NiceFlowArticleTest(FlowTests, unittest.TestCase):
    model_tester_class = NiceFlowArticleTester


class InvertibleResNetTester(FlowTester):
    model_classes = (InvertibleResNetModel,)
    # Two scales, a split, a dense block, and a prior with parameters
    settings = {
        "event_shape": [1, 8, 8],
        "num_levels": 17,
        "block_type": "conv",
        "num_blocks": [1, 1],
        "hidden_size": 6,
        "split": True,
        "num_dense_blocks": 1,
        "dense_hidden_size": 8,
        "data_transform": "logit",
        "prior": "diagonal",
    }


class InvertibleResNetTest(FlowTests, unittest.TestCase):
    model_tester_class = InvertibleResNetTester

    @unittest.skip("the buffers hold norms of the weights, which are random, so two initialisations differ")
    def test_init_weights_can_init_buffers(self) -> None:
        pass
