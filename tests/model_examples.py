"""One small example of every registered model, for the contract tests.

A new model adds a configuration and, for each Auto class, a batch as its processor or tokenizer would give it, with all
randomness stated, so that a loss is a function of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfblog import FlowImageProcessor, train_tokenizer


@dataclass
class ModelExample:
    config: dict[str, Any]
    # size, name of the Auto class -> batch
    batch: Callable[[int, str], dict[str, Tensor]]
    processor: Callable[[], Any]
    # configuration values that must be refused
    wrong: tuple[dict[str, Any], ...]
    # Auto classes of bare networks, which compute no loss
    without_loss: tuple[str, ...] = ()


def _images(size: int, auto_name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    levels = torch.randint(17, (size, 1, 4, 4), generator=generator)
    return {"pixel_values": levels / 16, "noise": torch.rand(size, 1, 4, 4, generator=generator)}


def _labelled_images(size: int, auto_name: str) -> dict[str, Tensor]:
    batch = _images(size, auto_name)
    if auto_name == "AutoModelForImageClassification":
        # a class that the image tells, so that training has something to learn
        batch["labels"] = (batch["pixel_values"].mean((1, 2, 3)) * 3).long().clamp(0, 2)
    return batch


def _texts(size: int, auto_name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    lengths = 4 + torch.arange(size) % 4
    mask = (torch.arange(7) < lengths[:, None]).long()
    ids = torch.randint(5, 40, (size, 7), generator=generator) * mask
    ids[:, 0] = 2
    batch = {"input_ids": ids, "attention_mask": mask, "condition_ids": torch.arange(size) % 3}
    if auto_name == "AutoModelForCausalLM":
        batch["labels"] = torch.where(mask == 1, ids, -100)
    elif auto_name == "AutoModelForSequenceClassification":
        batch["labels"] = torch.arange(size) % 2
    return batch


EXAMPLES = {
    "conditional_ln_bert": ModelExample(
        config={
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 12,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "condition_dropout": 0.0,
            "condition_size": 6,
            "condition_hidden_size": 5,
            "num_condition_classes": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        batch=_texts,
        processor=lambda: train_tokenizer(["手机很好。", "a good phone"] * 2, vocab_size=40),
        wrong=(
            {"attention_type": "diagonal"},
            {"conditioning": "wish"},
            {"hidden_size": 15},
            {"condition_layers": ["attic"]},
            {"condition_layers": "ffn"},
            {"condition_dropout": 1.0},
            {"num_condition_classes": [3, 0]},
            {"condition_labels": ["one", "two"]},
            {"sum_conditions": True, "num_condition_classes": None},
            {"condition_hidden_act": "silu", "condition_hidden_size": None},
            {"vision_config": {"hidden_size": 3}},
            {"vocab_size": "40"},
        ),
        without_loss=("AutoModel",),
    ),
    "invertible_resnet": ModelExample(
        config={
            "event_shape": (1, 4, 4),
            "num_levels": 17,
            "block_type": "conv",
            "num_blocks": [2, 1],
            "hidden_size": 6,
            "num_dense_blocks": 1,
            "dense_hidden_size": 8,
            "data_transform": "logit",
            "prior": "diagonal",
            "log_det_estimator": "exact",
            "density_weight": 0.5,
            "num_labels": 3,
        },
        batch=_labelled_images,
        processor=lambda: FlowImageProcessor(size={"height": 4, "width": 4}, num_levels=17),
        wrong=(
            {"lipschitz_coeff": 1.0},
            {"lipschitz_coeff": 1.5},
            {"lipschitz_coeff": None, "density_weight": 0.5},
            {"hidden_act": "silu"},
            {"hidden_act": "gelu"},
            {"dropout": 0.1},
            {"block_norm": "batch"},
            {"event_shape": (1, 6, 6)},
            {"event_shape": (16,)},
            {"kernel_sizes": [3, 2, 3]},
            {"num_blocks": [2, -1]},
            {"coeff_scope": "network"},
            {"log_det_estimator": "guess"},
            {"roulette_stop_probability": 1.0},
            {"injective_padding": 1},
            {"hidden_size": "6"},
        ),
    ),
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
