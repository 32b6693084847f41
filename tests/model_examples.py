"""One small example of every registered model, for the contract tests.

A new model adds a configuration and a batch as its processor or tokenizer would give it, with all randomness stated, so that
a loss is a function of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfblog import FlowImageProcessor


@dataclass
class ModelExample:
    config: dict[str, Any]
    batch: Callable[[int], dict[str, Tensor]]
    processor: Callable[[], Any]
    # configuration values that must be refused
    wrong: tuple[dict[str, Any], ...]


def _images(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    levels = torch.randint(17, (size, 1, 4, 4), generator=generator)
    return {"pixel_values": levels / 16, "noise": torch.rand(size, 1, 4, 4, generator=generator)}


EXAMPLES = {
    "nice_flow": ModelExample(
        config={
            "event_shape": (1, 4, 4),
            "num_levels": 17,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "permutation": "random",
            "coupling_init": "glorot",
        },
        batch=_images,
        processor=lambda: FlowImageProcessor(size={"height": 4, "width": 4}, num_levels=17),
        wrong=({"prior": "cauchy"}, {"hidden_size": "12"}, {"num_coupling_layers": True}, {"event_shape": ()}),
    ),
}
