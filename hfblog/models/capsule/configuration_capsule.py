"""Configuration of capsule networks.

No ``from __future__ import annotations`` here: `strict` reads the annotations as objects, and checks no type where it finds
strings.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

ROUTING_TYPES = ("kmeans", "replace", "hinton")
WEIGHT_LAYOUTS = ("shared", "factored", "full")
SQUASH_TYPES = ("squash", "tanh", "exp", "ratio", "none")
POOLINGS = ("routing", "mean")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise a ``ValueError`` that names the wrong value and the accepted ones."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; it must be one of {', '.join(map(repr, choices))}")


@strict
class CapsuleConfig(PreTrainedConfig):
    r"""Configuration of a [`CapsuleModel`] and its classifiers.

    Vectors u_i, of the places of an image or the tokens of a text, are clustered around one centre v_j a class, and the
    length of v_j says how much of class j there is (https://kexue.fm/archives/5112; https://kexue.fm/archives/4819; Sabour,
    Frosst, Hinton 2017, arXiv:1710.09829).

    Args:
        image_size: side in pixels, or ``(height, width)``. None takes images of any size, which only ``"shared"`` weights
            without a decoder can.
        num_channels: channels of the images.
        conv_channels: output channels of the convolutions, each followed by ReLU.
        conv_kernel_sizes, conv_strides: one integer for all convolutions or one for each.
        conv_padding: whether convolutions keep the size (odd kernels) or shrink it.
        pool_after: number of convolutions after which a 2x2 average pooling stands; None for no pooling.
        primary_capsule_dim: None makes every place of the last map one input vector. A number d makes the last convolution
            linear and cuts its channels into squashed capsules of d numbers (the paper's PrimaryCaps).
        encoder_config: configuration of a transformers model (anything that `AutoModel` builds and that gives a
            ``last_hidden_state``) in place of the convolutions; its states are the input vectors.
        num_labels: number of classes, which is that of the capsules.
        capsule_dim: numbers D of a capsule.
        pooling: ``"routing"``, or ``"mean"``, a baseline for comparisons: the mean of the input vectors, one hidden layer of
            as many weights as the routing layer has, and a sigmoid a class.
        routing_type: how centres become logits. ``"kmeans"`` (5112): normalised in the loop, squashed once at the end.
            ``"replace"`` (4819): squashed in the loop. ``"hinton"`` (the paper): squashed, and logits add up.
        routing_iterations: number of softmaxes R, the first of which is uniform: R = 3 is the paper's "3 iterations", and
            the article's algorithm with r = 2. R = 1 does not route.
        weight_layout: ``"shared"`` (W_j, any number of inputs, order does not matter), ``"factored"`` (W_j after a matrix
            for each input) or ``"full"`` (W_ji for each input and capsule).
        num_input_capsules: number of inputs n of the last two. It follows from the image size; texts may be shorter.
        factor_dim: output size of the matrices of each input under ``"factored"``; None keeps theirs.
        squash_type: length of a capsule from the norm n of its sum: ``"squash"`` is n^2 / (squash_constant + n^2),
            ``"tanh"``, ``"exp"`` is 1 - exp(-n), ``"ratio"`` is n / (1 + n), and ``"none"`` is n.
        squash_constant: 0.5 in the articles, 1 in the paper.
        routing_temperature: inverse temperature beta of the softmax. Matrices absorb it (W -> beta W), so 1 loses nothing.
        detach_routing: no gradient through the logits, only through the last weighted sum: cheaper, another optimum.
        margin_positive, margin_negative, margin_lambda: m+, m- and lambda of the margin loss, which is summed over classes.
            lambda is 0.25 in the author's code and 0.5 in the paper.
        use_decoder: whether a multilayer perceptron reconstructs the image from the capsule of its class.
        decoder_hidden_sizes: its hidden layers, with ReLU.
        reconstruction_weight: weight of the squared error, summed over the image, in the loss.
        initializer_range: standard deviation of new W. None is Glorot's for a matrix of one input and all capsules. Long
            inputs need less: squashed sums of many vectors saturate.

    Example:

    ```python
    >>> from hfblog import CapsuleConfig
    >>> CapsuleConfig.from_preset("capsnet").num_input_capsules
    1152

    ```
    """

    model_type = "capsule"
    sub_configs = {"encoder_config": AutoConfig}
    keys_to_ignore_at_inference = ["capsules", "reconstruction", "routing_weights", "routing_objective"]
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_capsule.CapsuleConfig",
        "AutoModel": "modeling_capsule.CapsuleModel",
        "AutoModelForImageClassification": "modeling_capsule.CapsuleForImageClassification",
        "AutoModelForSequenceClassification": "modeling_capsule.CapsuleForSequenceClassification",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # the author's network for digits side by side, capsule_test.py of bojone/Capsule
        "article": {"num_labels": 10},
        # Sabour et al. 2017, section 4
        "capsnet": {
            "image_size": 28,
            "conv_channels": [256, 256],
            "conv_kernel_sizes": 9,
            "conv_strides": [1, 2],
            "pool_after": None,
            "primary_capsule_dim": 8,
            "num_labels": 10,
            "routing_type": "hinton",
            "weight_layout": "full",
            "squash_constant": 1.0,
            "margin_lambda": 0.5,
            "use_decoder": True,
        },
    }
    _auto_class = "AutoConfig"

    image_size: int | list[int] | tuple[int, ...] | None = None
    num_channels: int = 1
    conv_channels: list[int] | tuple[int, ...] = (64, 64, 128, 128)
    conv_kernel_sizes: int | list[int] | tuple[int, ...] = 3
    conv_strides: int | list[int] | tuple[int, ...] = 1
    conv_padding: bool = False
    pool_after: int | None = 2
    primary_capsule_dim: int | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    capsule_dim: int = 16
    pooling: str = "routing"
    routing_type: str = "kmeans"
    routing_iterations: int = 3
    weight_layout: str = "shared"
    num_input_capsules: int | None = None
    factor_dim: int | None = None
    squash_type: str = "squash"
    squash_constant: float | int = 0.5
    routing_temperature: float | int = 1.0
    detach_routing: bool = False
    margin_positive: float | int = 0.9
    margin_negative: float | int = 0.1
    margin_lambda: float | int = 0.25
    use_decoder: bool = False
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (512, 1024)
    reconstruction_weight: float | int = 0.0005
    initializer_range: float | int | None = None

    def __post_init__(self, **kwargs):
        # Set anew on every load: references that came from a Hub repository carry its name, and would keep pointing there.
        kwargs.pop("auto_map", None)
        if isinstance(self.encoder_config, dict):
            settings = dict(self.encoder_config)
            self.encoder_config = AutoConfig.for_model(settings.pop("model_type", "bert"), **settings)
        super().__post_init__(**kwargs)
        if self.num_input_capsules is None and self.weight_layout != "shared":
            self.num_input_capsules = self.conv_num_capsules()
        self.auto_map = dict(self.auto_classes)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "CapsuleConfig":
        """A named configuration, with single fields replaced by ``overrides``."""
        check_choice("preset", name, tuple(cls.presets))
        return cls(**(cls.presets[name] | overrides))

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """Size of the images in pixels; None for any."""
        if self.image_size is None or isinstance(self.image_size, int):
            return None if self.image_size is None else (self.image_size, self.image_size)
        return tuple(self.image_size)

    @property
    def input_dim(self) -> int:
        """Numbers f of an input vector."""
        if self.encoder_config is not None:
            return self.encoder_config.hidden_size
        return self.primary_capsule_dim or self.conv_channels[-1]

    def convolutions(self) -> list[tuple[int, int, int]]:
        """``(channels, kernel size, stride)`` of each convolution."""
        count = len(self.conv_channels)
        kernels, strides = (
            [value] * count if isinstance(value, int) else list(value) for value in (self.conv_kernel_sizes, self.conv_strides)
        )
        return list(zip(self.conv_channels, kernels, strides, strict=True))

    def conv_output_size(self, height: int, width: int) -> tuple[int, int]:
        """Places of the last map for an image of this size.

        Raises:
            ValueError: nothing is left of it.
        """
        sizes = [height, width]
        for index, (_, kernel, stride) in enumerate(self.convolutions(), 1):
            padding = kernel // 2 if self.conv_padding else 0
            sizes = [(size + 2 * padding - kernel) // stride + 1 for size in sizes]
            if index == self.pool_after:
                sizes = [size // 2 for size in sizes]
            if min(sizes) < 1:
                raise ValueError(f"image_size={(height, width)}: nothing is left of such an image after convolution {index}")
        return tuple(sizes)

    def conv_num_capsules(self) -> int | None:
        """Number of vectors that the convolutions make of an image; None where that does not follow."""
        if self.encoder_config is not None or self.image_size is None:
            return None
        self.validate_images()
        return math.prod(self.conv_output_size(*self.height_and_width)) * (self.conv_channels[-1] // self.input_dim)

    def validate_images(self):
        count = len(self.conv_channels)
        for name in ("conv_channels", "conv_kernel_sizes", "conv_strides"):
            value = getattr(self, name)
            if not isinstance(value, int) and len(value) != count:
                raise ValueError(f"{name}={value!r} must be one number, or one for each of the {count} convolutions")
            if not count or min([value] if isinstance(value, int) else value) < 1:
                raise ValueError(f"{name}={value!r} must hold positive numbers")
        for name in ("num_channels", "primary_capsule_dim", "pool_after"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.pool_after is not None and self.pool_after > count:
            raise ValueError(f"pool_after={self.pool_after} must be None or one of the {count} convolutions")
        if self.conv_padding and any(kernel % 2 == 0 for _, kernel, _ in self.convolutions()):
            raise ValueError(f"conv_kernel_sizes={self.conv_kernel_sizes}: conv_padding keeps the size for odd kernels only")
        if self.primary_capsule_dim is not None and self.conv_channels[-1] % self.primary_capsule_dim:
            raise ValueError(
                f"primary_capsule_dim={self.primary_capsule_dim} does not divide the {self.conv_channels[-1]} channels"
            )
        if self.image_size is not None:
            if not isinstance(self.image_size, int) and len(self.image_size) != 2:
                raise ValueError(f"image_size={self.image_size!r} must be one side or (height, width)")
            if self.encoder_config is None:
                self.conv_output_size(*self.height_and_width)

    def validate_capsules(self):
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("routing_type", self.routing_type, ROUTING_TYPES)
        check_choice("weight_layout", self.weight_layout, WEIGHT_LAYOUTS)
        check_choice("squash_type", self.squash_type, SQUASH_TYPES)
        for name in ("capsule_dim", "routing_iterations", "num_input_capsules", "factor_dim", "num_labels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("squash_constant", "routing_temperature", "initializer_range"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        if self.factor_dim is not None and self.weight_layout != "factored":
            raise ValueError(f"factor_dim={self.factor_dim} belongs to weight_layout='factored', not {self.weight_layout!r}")
        if self.pooling == "mean":
            return
        if self.weight_layout != "shared" and self.num_input_capsules is None:
            raise ValueError(
                f"weight_layout={self.weight_layout!r} has matrices for each input: give image_size, or num_input_capsules "
                "for texts, or use 'shared'"
            )
        known = self.conv_num_capsules()
        if self.weight_layout != "shared" and known not in (None, self.num_input_capsules):
            raise ValueError(
                f"num_input_capsules={self.num_input_capsules}, but images of {self.height_and_width} give {known}"
            )

    def validate_loss(self):
        if not 0 <= self.margin_negative < self.margin_positive <= 1:
            raise ValueError(
                f"margin_negative={self.margin_negative} and margin_positive={self.margin_positive} must satisfy "
                "0 <= margin_negative < margin_positive <= 1"
            )
        for name in ("margin_lambda", "reconstruction_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.use_decoder and self.height_and_width is None:
            raise ValueError("use_decoder=True needs image_size: the decoder draws images of one size")
        if self.use_decoder and self.pooling == "mean":
            raise ValueError("use_decoder=True reads capsules, which pooling='mean' has none of")


__all__ = ["CapsuleConfig"]
