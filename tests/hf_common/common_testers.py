"""What the common tests need to know about a model, and the base classes of the test cases.

A new model takes two small classes: a tester, which is mostly data, and a test case that names it.

```python
class MyModelTester(ModelTester):
    model_classes = (MyModel,)
    settings = {"hidden_size": 16, "num_hidden_layers": 2}

    def get_inputs(self, config):
        return {"x": floats_tensor((self.batch_size, 8))}


class MyModelTest(CommonTests, unittest.TestCase):
    tester_class = MyModelTester
```
"""

from __future__ import annotations

from typing import Any, ClassVar

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

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
        config = self.get_config()
        return config, self.get_inputs(config)


class CommonTests(ModelTesterMixin):
    """The common tests of models and configurations, for the model of ``tester_class``."""

    tester_class: ClassVar[type[ModelTester]]
    # else the test reads the year of a model from its configuration's copyright line and skips those before 2023
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = self.tester_class()
        self.all_model_classes = self.tester_class.model_classes
        self.config_tester = ConfigTester(
            self,
            config_class=self.all_model_classes[0].config_class,
            has_text_modality=self.tester_class.has_text_modality,
            common_properties=list(self.tester_class.common_properties),
            **self.tester_class.settings,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()
