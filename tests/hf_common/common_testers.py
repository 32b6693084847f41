"""What the common tests need to know about a model, and the base classes of the test cases.

A new model takes two small classes: a tester, which is mostly data, and a test case that names it.

```python
class MyModelTester(ModelTester):
    model_classes = (MyModel,)
    settings = {"hidden_size": 16, "num_hidden_layers": 2}

    def get_inputs(self, config):
        return {"x": torch.rand(self.batch_size, 8, device=torch_device)}


class MyModelTest(CommonTests, unittest.TestCase):
    model_tester_class = MyModelTester
```

Models of text also derive from `TrainingTesterMixin` of ``tests.test_training_mixin``, after `CommonTests`.
"""

from __future__ import annotations

import contextlib
import unittest
from typing import Any, ClassVar
from unittest.mock import patch

from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


class ModelTester:
    """A small model and a batch for it."""

    # the classes that share one configuration, the base model first
    model_classes: ClassVar[tuple[type[PreTrainedModel], ...]]
    # fields of the configuration, as JSON would give them back: lists, no tuples
    settings: ClassVar[dict[str, Any]]
    # fields the configuration has under these names
    common_properties: ClassVar[tuple[str, ...]] = ("hidden_size", "num_hidden_layers")
    has_text_modality: ClassVar[bool] = False
    batch_size: ClassVar[int] = 3
    is_training: ClassVar[bool] = True

    @classmethod
    def get_config(cls) -> PreTrainedConfig:
        return cls.model_classes[0].config_class(**cls.settings)

    def get_inputs(self, config: PreTrainedConfig) -> dict[str, Tensor]:
        """Arguments of `forward`, for a batch of ``batch_size``."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_inputs")

    def get_labels(self, model_class: type[PreTrainedModel]) -> dict[str, Tensor]:
        """Further arguments that ``model_class`` needs for a loss; transformers knows those of its own classes only."""
        return {}

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
        config = self.get_config()
        return config, self.get_inputs(config)


class CommonTests(ModelTesterMixin):
    """The common tests of models and configurations, for the model of ``model_tester_class``."""

    model_tester_class: ClassVar[type[ModelTester]]
    # else the test reads the year of a model from its configuration's copyright line and skips those before 2023
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class()
        self.all_model_classes = self.model_tester_class.model_classes
        self.config_tester = ConfigTester(
            self,
            config_class=self.all_model_classes[0].config_class,
            has_text_modality=self.model_tester_class.has_text_modality,
            common_properties=list(self.model_tester_class.common_properties),
            **self.model_tester_class.settings,
        )

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type[PreTrainedModel], return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return inputs | self.model_tester.get_labels(model_class) if return_labels else inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class FollowsFloat64:
    """For models some parts of which stay in float32 beside bfloat16, and are float64 in a model of float64."""

    @unittest.skip("a fixed float32, which transformers asks for from version 5.24 on, would spoil a model of float64")
    def test_keep_in_fp32_modules_strict_also_hardcode_fp32(self) -> None:
        pass


class CommonTestsWithoutHiddenStates(CommonTests):
    """The same for models whose forward gives no hidden states: maps of several sizes, one number, a table, one layer."""

    @unittest.skip("there are no hidden states of one size")
    def test_hidden_states_output(self) -> None:
        pass

    @unittest.skip("there are no hidden states of one size")
    def test_retain_grad_hidden_states_attentions(self) -> None:
        pass

    def test_model_outputs_equivalence(self) -> None:
        # The test compares tuples with dictionaries, and then once more with hidden states, an argument that these models
        # refuse; it is dropped on the way, so that the comparison itself stays.
        with contextlib.ExitStack() as stack:
            for model_class in self.all_model_classes:
                forward = model_class.forward

                def without_hidden_states(model: Any, *args: Any, forward: Any = forward, **kwargs: Any) -> Any:
                    kwargs.pop("output_hidden_states", None)
                    return forward(model, *args, **kwargs)

                stack.enter_context(patch.object(model_class, "forward", without_hidden_states))
            super().test_model_outputs_equivalence()
