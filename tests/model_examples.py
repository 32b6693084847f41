"""One small example of every registered model, for the contract tests.

A new model adds a configuration and, for each Auto class, a batch as its processor or tokenizer would give it, with all
randomness stated, so that a loss is a function of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfblog import FlowImageProcessor, build_term_tokenizer, train_tokenizer, train_word_tokenizer


@dataclass
class ModelExample:
    config: dict[str, Any]
    # size, name of the Auto class -> batch
    batch: Callable[[int, str], dict[str, Tensor]]
    # name of the Auto class -> processor or tokenizer
    processor: Callable[[str], Any]
    # configuration values that must be refused
    wrong: tuple[dict[str, Any], ...]
    # Auto classes of bare networks, which compute no loss
    without_loss: tuple[str, ...] = ()
    # what differs in the configuration of single Auto classes
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def settings(self, auto_name: str) -> dict[str, Any]:
        """The configuration for one Auto class."""
        return self.config | self.changes.get(auto_name, {})


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


def _tokenizer(auto_name: str) -> Any:
    return train_tokenizer(["手机很好。", "a good phone"] * 2, vocab_size=40)


def _images_or_texts(size: int, auto_name: str) -> dict[str, Tensor]:
    """What a classifier of either takes: no noise, no condition."""
    kind = _texts if auto_name == "AutoModelForSequenceClassification" else _labelled_images
    batch = kind(size, auto_name)
    return {name: values for name, values in batch.items() if name not in ("noise", "condition_ids")}


def _image_processor_or_tokenizer(auto_name: str) -> Any:
    if auto_name == "AutoModelForSequenceClassification":
        return _tokenizer(auto_name)
    return FlowImageProcessor(size={"height": 4, "width": 4})


def _images_and_noise_images(size: int, auto_name: str) -> dict[str, Tensor]:
    """With three noise images for each."""
    noise = 0.5 + 0.3 * torch.randn(size, 3, 1, 4, 4, generator=torch.Generator().manual_seed(size))
    return _images(size, auto_name) | {"noise_samples": noise}


def _words_and_noise_words(size: int, auto_name: str) -> dict[str, Tensor]:
    """Sequences that count upwards, so that there is something to learn, with five noise words for each."""
    generator = torch.Generator().manual_seed(size)
    ids = (torch.randint(37, (size, 1), generator=generator) + torch.arange(7)) % 37 + 3
    return {"input_ids": ids, "labels": ids, "noise_ids": torch.randint(40, (size, 5), generator=generator)}


def _items(size: int, auto_name: str) -> dict[str, Tensor]:
    """Sequences that count upwards; the model that learns gets five noise items for each."""
    batch = _words_and_noise_words(size, auto_name)
    if auto_name != "AutoModelForPreTraining":
        return {"input_ids": batch["input_ids"]}
    return {"input_ids": batch["input_ids"], "noise_ids": batch["noise_ids"]}


def _words_of_a_lexicon(size: int, auto_name: str) -> dict[str, Tensor]:
    """Few words of forty, so that there is something to learn."""
    generator = torch.Generator().manual_seed(size)
    return {"input_ids": torch.randint(2, 12, (size, 7), generator=generator), "attention_mask": torch.ones(size, 7).long()}


CODE_SIZE = 6


def _with_noise_of_codes(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """With two codes stated for each example."""
    size = len(next(iter(batch.values())))
    noise = torch.randn(size, 2, CODE_SIZE, generator=torch.Generator().manual_seed(size))
    return batch | {"noise": noise}


# without dropout: a loss must be a function of the batch
TINY_BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

EXAMPLES = {
    "capsule": ModelExample(
        config={"conv_channels": [6, 8], "conv_padding": True, "pool_after": 1, "capsule_dim": 5, "num_labels": 3},
        changes={
            "AutoModelForImageClassification": {
                "image_size": 4,
                "primary_capsule_dim": 4,
                "weight_layout": "full",
                "routing_type": "hinton",
                "use_decoder": True,
                "decoder_hidden_sizes": [7],
            },
            "AutoModelForSequenceClassification": {
                "encoder_config": TINY_BERT,
                "weight_layout": "factored",
                "num_input_capsules": 12,
                "num_labels": 2,
            },
        },
        batch=_images_or_texts,
        processor=_image_processor_or_tokenizer,
        wrong=(
            {"routing_type": "em"},
            {"routing_iterations": 0},
            {"weight_layout": "full"},
            {"squash_type": "relu"},
            {"pooling": "max"},
            {"capsule_dim": "5"},
            {"conv_kernel_sizes": [3, 3, 3]},
            {"conv_kernel_sizes": 4},
            {"image_size": 0},
            {"primary_capsule_dim": 3},
            {"factor_dim": 4},
            {"use_decoder": True},
            {"margin_negative": 0.9},
            {"routing_temperature": 0.0},
            {"num_input_capsules": 5, "image_size": 4, "weight_layout": "factored"},
        ),
        without_loss=("AutoModel",),
    ),
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
        processor=_tokenizer,
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
        processor=lambda _: FlowImageProcessor(size={"height": 4, "width": 4}, num_levels=17),
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
    "min_entropy_embedding": ModelExample(
        config={
            "vocab_size": 40,
            "embedding_dim": 6,
            "cost": "student_t",
            "item_bias": True,
            "objective": "nce",
            "num_noise_samples": 3,
            "window_size": 2,
            "subsample": 0.0,
            "output_vectors": "concat",
            "num_subwords": 50,
        },
        batch=_items,
        processor=lambda _: train_word_tokenizer(["a good phone", "the other phone"] * 2),
        wrong=(
            {"cost": "cosine"},
            {"objective": "glove"},
            {"output_vectors": "both"},
            {"vocab_size": 0},
            {"embedding_dim": "6"},
            {"degrees_of_freedom": 0.0},
            {"num_noise_samples": 40},
            {"noise_power": float("nan")},
            {"window_size": 0},
            {"subsample": -1e-3},
            {"subword_lengths": [6, 3]},
            {"normalize_over": "pairs"},
            {"objective": "layout"},
            {"min_distance": 1.0},
            {"tie_context": True},
        ),
        without_loss=("AutoModel",),
    ),
    "nce_density": ModelExample(
        config={
            "event_shape": (1, 4, 4),
            "num_levels": 17,
            "dequantization": "uniform",
            "energy": "conv",
            "conv_channels": (4, 6),
            "hidden_sizes": (10,),
            "relative_to_noise": True,
            "noise": "flow",
            "noise_config": {
                "model_type": "nice_flow",
                "event_shape": (1, 4, 4),
                "num_levels": 17,
                "hidden_size": 8,
                "num_hidden_layers": 1,
            },
            "noise_ratio": 3,
        },
        batch=_images_and_noise_images,
        processor=lambda _: FlowImageProcessor(size={"height": 4, "width": 4}, num_levels=17),
        wrong=(
            {"event_shape": ()},
            {"num_levels": 1},
            {"dequantization": "none"},
            {"energy": "spline"},
            {"hidden_act": "step"},
            {"hidden_sizes": (10, 0)},
            {"conv_channels": ()},
            {"conv_kernel_size": 4},
            {"dropout": 1.0},
            {"noise": "cauchy"},
            {"noise_config": None},
            {"noise_config": {"model_type": "no_model"}},
            {"noise_ratio": 0},
            {"noise_ratio": -1.0},
            {"noise_ratio": "3"},
            {"noise_scale": 0.0},
            {"noise_margin": -0.1},
            {"loss_type": "hinge"},
            {"loss_type": "full"},
            {"log_partition": "guessed"},
            {"log_partition_init": 1.0, "log_partition": "none"},
            {"num_bridges": 0},
        ),
    ),
    "nce_lm": ModelExample(
        config={
            # without dropout: a loss must be a function of the batch
            "backbone_config": {
                "model_type": "gpt2",
                "vocab_size": 40,
                "n_embd": 16,
                "n_layer": 1,
                "n_head": 2,
                "n_positions": 12,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
            "num_noise_samples": 5,
            "noise_sharing": "sequence",
            "log_partition": "context",
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 2,
        },
        batch=_words_and_noise_words,
        processor=lambda _: train_word_tokenizer(["a good phone", "the other phone"] * 2),
        wrong=(
            {"backbone_config": {"model_type": "no_model"}},
            {"backbone_config": {"vocab_size": 40}},
            {"loss_type": "hinge"},
            {"num_noise_samples": 0},
            {"num_noise_samples": "5"},
            {"noise_sharing": "world"},
            {"noise_power": float("inf")},
            {"log_partition": "learned"},
            {"log_partition_init": 1.0, "log_partition": "none"},
            {"sparse_gradients": True, "tie_word_embeddings": True},
            {"initializer_range": 0.0},
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
        processor=lambda _: FlowImageProcessor(size={"height": 4, "width": 4}, num_levels=17),
        wrong=({"prior": "cauchy"}, {"hidden_size": "12"}, {"num_coupling_layers": True}, {"event_shape": ()}),
    ),
    "term_miner": ModelExample(
        config={
            "num_words": 40,
            "num_compounds": 3,
            "num_term_symbols": 50,
            "num_symbol_bytes": 30,
            "background_names": ["news", "reviews"],
            "embedding_dim": 5,
        },
        batch=_words_of_a_lexicon,
        processor=lambda _: build_term_tokenizer(list("一二三四五六七八九十"), [-1.0] * 10),
        wrong=(
            {"level": "letter"},
            {"normalize": "NFC"},
            {"method": "guess"},
            {"max_ngram": 5},
            {"max_ngram": 1},
            {"max_term_length": 3},
            {"min_count": 0},
            {"min_count": "5"},
            {"cohesion_thresholds": [1.0, 2.0]},
            {"autonomy_weight": -1.0},
            {"min_pmi": float("nan")},
            {"contrast": "chi2"},
            {"combine": "mean"},
            {"prior_strength": -1.0},
            {"min_similarity": 0.9, "max_similarity": 0.8},
            {"em_rounds": -1},
            {"rules": "french"},
        ),
    ),
    "vae": ModelExample(
        config={
            "event_shape": (1, 4, 4),
            "num_levels": 17,
            "network": "conv",
            "conv_channels": (4, 6),
            "hidden_sizes": (10,),
            "latent_dim": CODE_SIZE,
            "binarization": "threshold",
            "posterior": "full",
            "prior": "vamp",
            "num_components": 5,
        },
        batch=lambda size, auto_name: _with_noise_of_codes({"pixel_values": _images(size, auto_name)["pixel_values"]}),
        processor=lambda _: FlowImageProcessor(size={"height": 4, "width": 4}, num_levels=17),
        wrong=(
            {"event_shape": ()},
            {"event_shape": (1, 0, 4)},
            {"event_shape": (16,)},
            {"num_levels": 1},
            {"network": "resnet"},
            {"hidden_sizes": (10, 0)},
            {"hidden_sizes": "10"},
            {"hidden_act": "step"},
            {"conv_channels": ()},
            {"conv_kernel_size": 4},
            {"dropout": 1.0},
            {"decoder": "poisson"},
            {"binarization": "random"},
            {"decoder_std": 0.0},
            {"min_decoder_std": -0.1},
            {"bottleneck": "none"},
            {"bottleneck": "dual"},
            {"beta": -1.0},
            {"importance_weighted": True, "beta": 0.5},
            {"importance_weighted": True, "kl_warmup_steps": 3},
            {"prior": "cauchy"},
            {"posterior": "flow"},
            {"latent_dim": 0},
        ),
    ),
    "vib": ModelExample(
        config={
            "encoder_type": "conv",
            "image_size": 4,
            "conv_channels": (4, 6),
            "hidden_sizes": (10,),
            "latent_dim": CODE_SIZE,
            "bottleneck": "dual",
            "beta": 0.05,
            "target_rate": 1.75,
            "dual_lr": 0.05,
            # near the target from the start, where the rates of single batches tell in the multiplier
            "std_param": "softplus",
            "std_shift": -0.4,
            "prior": "learned",
            "num_labels": 3,
        },
        changes={
            "AutoModelForSequenceClassification": {
                "encoder_type": "auto",
                "encoder_config": TINY_BERT,
                "bottleneck": "fixed",
                "target_rate": None,
                "prior": "vamp",
                "num_components": 4,
                "eval_mode": "sample",
                "num_eval_samples": 3,
                "num_labels": 2,
            }
        },
        batch=lambda size, auto_name: _with_noise_of_codes(_images_or_texts(size, auto_name)),
        processor=_image_processor_or_tokenizer,
        wrong=(
            {"bottleneck": "capacity"},
            {"target_rate": None},
            {"target_rate": 0.0},
            {"target_rate": -1.0},
            {"target_rate": 1.75, "bottleneck": "fixed"},
            {"beta": -0.1},
            {"beta": 0.0},
            {"dual_update": "adam"},
            {"dual_lr": 0.0},
            {"kl_warmup_steps": -1},
            {"free_bits": -0.1},
            {"free_bits": 0.1, "posterior": "full"},
            {"free_bits": 0.1, "prior": "mixture"},
            {"free_bits": 0.1, "bottleneck": "hinge"},
            {"posterior": "cholesky"},
            {"posterior": "full", "latent_dim": 20_000},
            {"std_param": "exp"},
            {"prior": "flow"},
            {"num_components": 0},
            {"latent_dim": "6"},
            {"num_train_samples": 0},
            {"num_eval_samples": 0},
            {"eval_mode": "map"},
            {"pooling": "sum"},
            {"encoder_type": "lstm"},
            {"encoder_type": "auto"},
            {"encoder_config": {"model_type": "bert"}},
            {"encoder_config": {"hidden_size": 16}},
            {"encoder_config": {"model_type": "no_model"}},
            {"image_size": (4, 4, 1)},
            {"image_size": 0},
            {"conv_kernel_size": 2},
            {"hidden_act": "step"},
            {"dropout": 1.0},
            {"kernel_sizes": (), "encoder_type": "text_cnn"},
            {"num_labels": 0},
        ),
    ),
}
