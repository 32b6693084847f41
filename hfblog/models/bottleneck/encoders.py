"""Images and texts to feature vectors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.activations import ACT2FN


class MLPEncoder(nn.Module):
    """Flattened inputs through hidden layers; ``output_size`` features."""

    def __init__(self, input_size: int, hidden_sizes: list[int] | tuple[int, ...], hidden_act: str, dropout: float = 0.0):
        super().__init__()
        sizes = [input_size, *hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(size, following) for size, following in zip(sizes, sizes[1:], strict=False))
        self.act = ACT2FN[hidden_act]
        self.dropout = nn.Dropout(dropout)
        self.output_size = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ...) -> (batch, output_size)``."""
        x = x.flatten(1)
        for layer in self.layers:
            x = self.dropout(self.act(layer(x.to(layer.weight.dtype))))
        return x


def strided_sizes(height: int, width: int, count: int) -> list[tuple[int, int]]:
    """Sizes of a map before and after each of ``count`` convolutions of stride 2 that keep the borders."""
    sizes = [(height, width)]
    for _ in range(count):
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))
    return sizes


class ConvEncoder(nn.Module):
    """Convolutions of stride 2, then hidden layers."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        conv_channels: list[int] | tuple[int, ...],
        kernel_size: int,
        hidden_sizes: list[int] | tuple[int, ...],
        hidden_act: str,
        dropout: float = 0.0,
    ):
        super().__init__()
        channels, height, width = image_shape
        sizes = [channels, *conv_channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(size, following, kernel_size, stride=2, padding=kernel_size // 2)
            for size, following in zip(sizes, sizes[1:], strict=False)
        )
        self.act = ACT2FN[hidden_act]
        last = strided_sizes(height, width, len(conv_channels))[-1]
        self.head = MLPEncoder(math.prod(last) * sizes[-1], hidden_sizes, hidden_act, dropout)
        self.output_size = self.head.output_size

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width) -> (batch, output_size)``."""
        for layer in self.layers:
            x = self.act(layer(x.to(layer.weight.dtype)))
        return self.head(x)


class TextCNNEncoder(nn.Module):
    """The article's: embeddings, a convolution of each width over the tokens, ReLU, the maximum over the text.

    Padding counts as zeros, and no window begins there: features do not depend on how far a batch was padded.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        num_filters: int,
        kernel_sizes: list[int] | tuple[int, ...],
        pad_token_id: int | None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, embedding_size)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding_size, num_filters, size) for size in kernel_sizes)
        self.pad_token_id = pad_token_id
        self.dropout = nn.Dropout(dropout)
        self.output_size = num_filters * len(kernel_sizes)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """``(batch, tokens) -> (batch, output_size)``; without a mask every token but padding counts."""
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            known = input_ids is not None and self.pad_token_id is not None
            attention_mask = input_ids != self.pad_token_id if known else x.new_ones(x.shape[:2])
        there = attention_mask.bool()[..., None]
        x = self.dropout(x).masked_fill(~there, 0).mT
        found = []
        for convolution in self.convolutions:
            windows = F.relu(convolution(F.pad(x, (0, convolution.kernel_size[0] - 1))))
            found.append(windows.masked_fill(~there.mT, 0).amax(2))  # 0 is the least that ReLU gives
        return self.dropout(torch.cat(found, 1))


class PretrainedEncoder(nn.Module):
    """Any model that `AutoModel` builds, its states pooled to one vector an example."""

    def __init__(self, config: Any, pooling: str, dropout: float = 0.0):
        super().__init__()
        try:
            self.model = AutoModel.from_config(config)
        except ValueError as error:
            raise ValueError(
                f"encoder_config of model_type={config.model_type!r} is nothing that AutoModel can build: {error}"
            ) from error
        config.dtype = self.model.dtype  # as loading sets it: a saved configuration comes back equal
        drop_pooler(self.model)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.output_size = encoder_size(config)

    def forward(self, attention_mask: Tensor | None = None, **inputs: Tensor) -> Tensor:
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        states = getattr(self.model(**inputs), "last_hidden_state", None)
        if states is None:
            raise ValueError(f"encoder_config of model_type={self.model.config.model_type!r} gives no last_hidden_state")
        if states.ndim == 4:  # the map of a convolutional network
            states = states.flatten(2).mT
        if self.pooling == "cls":
            return self.dropout(states[:, 0])
        there = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask.to(states.dtype)
        if self.pooling == "max":
            return self.dropout(states.masked_fill(there[..., None] == 0, -torch.inf).amax(1))
        return self.dropout((states * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1))


def drop_pooler(model: nn.Module) -> None:
    """Remove the weights of a pooler: its output is not used, and processes would wait for its gradient.

    One without weights, as convolutional networks have it, is called without a look, and stays.
    """
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        model.pooler = None


def encoder_size(config: Any) -> int:
    """Features of an encoder's states.

    Raises:
        ValueError: the configuration does not say.
    """
    for name in ("hidden_size", "hidden_sizes", "d_model"):
        value = getattr(config, name, None)
        if value is not None:
            return value if isinstance(value, int) else value[-1]
    raise ValueError(f"encoder_config of model_type={config.model_type!r} does not state the size of its hidden states")
