"""What configurations of this family share.

No ``from __future__ import annotations`` in configuration files: `strict` reads the annotations as objects, and checks no
type where it finds strings.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise a ``ValueError`` that names the wrong value and the accepted ones."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; it must be one of {', '.join(map(repr, choices))}")


def check_positive(config: Any, *names: str) -> None:
    """Raise a ``ValueError`` for a number, or any of a list of numbers, that is not positive and finite; None passes."""
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(entry is not None and not 0 < entry < math.inf for entry in values):
            raise ValueError(f"{name}={value!r} must be positive")


def build_nested_config(name: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """A nested configuration from a dictionary with its ``model_type``.

    Raises:
        ValueError: there is no such type; the message names it and the field.
    """
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ValueError(f"{name} names no model_type, such as 'gpt2'")
    try:
        return AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        if "Unrecognized model identifier" not in str(error):
            raise
        raise ValueError(f"{name} has model_type={model_type!r}, which is no model of transformers") from None


@strict
class ContrastiveConfig(PreTrainedConfig):
    """References to the code that travels with a saved model."""

    auto_classes: ClassVar[dict[str, str]] = {}
    _auto_class = "AutoConfig"

    def __post_init__(self, **kwargs):
        # Set anew on every load: references that came from a Hub repository carry its name, and would keep pointing there.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        self.auto_map = dict(self.auto_classes)


__all__ = ["ContrastiveConfig"]
