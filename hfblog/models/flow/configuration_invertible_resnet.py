"""Configuration of the invertible ResNet."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_flow import FlowConfig, check_choice

BLOCK_TYPES = ("mlp", "conv")
COEFF_SCOPES = ("block", "layer")
LOG_DET_ESTIMATORS = ("auto", "exact", "truncated", "roulette")
TRACE_DISTRIBUTIONS = ("rademacher", "normal")
FEATURE_POOLINGS = ("mean", "none")
DATA_TRANSFORMS = ("none", "logit", "center")
# Activations with slopes in [-1, 1]; modeling code has the function and its slope for each.
ACTIVATIONS = ("lipswish", "elu", "relu", "tanh", "sigmoid", "softplus", "sin")
# Largest slope of activations that look harmless and are not.
STEEP_ACTIVATIONS = {"silu": 1.0998, "swish": 1.0998, "gelu": 1.1289, "gelu_new": 1.1290, "mish": 1.0885, "selu": 1.7581}


@strict
class InvertibleResNetConfig(FlowConfig):
    r"""Configuration of an [`InvertibleResNetModel`] or [`InvertibleResNetForImageClassification`].

    Every block is ``y = x + g(x)`` with a network g whose Lipschitz constant is held below 1 (Behrmann et al. 2019,
    arXiv:1811.00995; Chen et al. 2019, arXiv:1906.02735; https://kexue.fm/archives/6482).

    Args:
        event_shape, num_levels, dequantization, noise_width, prior: see [`FlowConfig`].
        block_type: ``"mlp"`` (g is a multilayer perceptron over all dimensions) or ``"conv"`` (zero-padded convolutions).
        num_blocks: number of blocks, one integer per scale; ``"mlp"`` has one scale.
        hidden_size: width, or channels, inside every g.
        num_hidden_layers: hidden layers of g in an ``"mlp"`` block; 0 makes g affine.
        kernel_sizes: odd kernel sizes of the convolutions of g, one per layer.
        hidden_act: ``"lipswish"`` (``silu(x) / 1.1``), ``"elu"``, ``"relu"``, ``"tanh"``, ``"sigmoid"``, ``"softplus"`` or
            ``"sin"``: activations whose slope never exceeds 1 in size.
        preactivation: whether g starts with an activation; the very first block never does.
        dropout, block_norm: stay 0 and None. A random or batch-dependent g has no inverse; other values are refused.
        lipschitz_coeff: bound c < 1 on the Lipschitz constant. None (no bound) is for comparisons of classifiers alone.
        coeff_scope: ``"block"`` (c bounds g, so each of its L layers is held below c^(1/L)) or ``"layer"`` (c bounds each
            layer, so g is held below c^L; what the papers' code does).
        num_power_iterations: power iterations per training step; their vectors stay from step to step.
        detach_sigma: treat the estimated norm as a constant in the gradient (a projection) instead of differentiating it.
        use_actnorm: an affine map per channel or dimension before every block and at the end, set from data.
        squeeze: whether each scale starts with a space-to-depth step, (C, H, W) -> (4C, H/2, W/2). Needs even sizes.
        squeeze_first: whether the first scale does so, too.
        split: whether half of the channels leave after every scale but the last.
        num_dense_blocks: ``"mlp"`` blocks over all remaining dimensions after the last scale of a ``"conv"`` model.
        dense_hidden_size: their width.
        injective_padding: channels of zeros added to the input. Such a model classifies but has no density.
        data_transform: ``"none"``, ``"center"`` (``x - 1/2``) or ``"logit"`` (of ``alpha + (1 - 2 alpha) x``).
        logit_alpha: alpha of the logit transform.
        log_det_estimator: log-determinant in training: ``"exact"``, ``"truncated"`` (the first ``num_series_terms`` terms,
            biased), ``"roulette"`` (unbiased) or ``"auto"``: exact up to 16 dimensions, roulette above. In evaluation it
            is exact up to `exact_log_det_size` dimensions, and above that a truncated series with a certified bound on
            the truncation and probes that are a fixed function of the example.
        exact_log_det_size: largest number of dimensions whose log-determinant is exact in evaluation.
        num_series_terms: terms of the ``"truncated"`` estimator in training.
        num_exact_terms: terms that the ``"roulette"`` estimator always takes.
        roulette_stop_probability: probability of stopping after each further term. None chooses ``(1 - c^2) / 2`` from the
            block's bound c. The variance is finite only below ``1 - c^2``; above that the model warns.
        num_trace_samples: probes per example of the trace estimator.
        trace_distribution: ``"rademacher"`` (least variance) or ``"normal"``.
        neumann_gradient: gradient by one vector-Jacobian product with a Neumann series, in memory that does not grow with
            the number of terms. False differentiates through every term.
        inverse_tolerance: root-mean-square error per dimension at which each block's inverse stops; None is 1e-7 in
            float32 and 1e-13 in float64. Blocks that follow multiply it, up to 1 / (1 - c) each.
        inverse_max_iterations: most evaluations of g per block.
        anderson_depth: residuals that the accelerated inverse combines; 0 is the plain fixed-point iteration.
        feature_pooling: in classification, ``"mean"`` over the places of the last map (the papers) or ``"none"``, a linear
            layer on the whole map: with bounded blocks the mean has little to say, and learning is far slower.
        density_weight: in classification, weight of the density's loss in nats per dimension.

    Example:

    ```python
    >>> from hfblog import InvertibleResNetConfig, InvertibleResNetModel
    >>> config = InvertibleResNetConfig(event_shape=(2,), num_levels=None, dequantization="none", num_blocks=[4])
    >>> InvertibleResNetModel(config).eval().sample(3).shape
    torch.Size([3, 2])

    ```
    """

    model_type = "invertible_resnet"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_invertible_resnet.InvertibleResNetConfig",
        "AutoImageProcessor": "image_processing_flow.FlowImageProcessor",
        "AutoModel": "modeling_invertible_resnet.InvertibleResNetModel",
        "AutoModelForImageClassification": "modeling_invertible_resnet.InvertibleResNetForImageClassification",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Behrmann et al. 2019, section 5: CIFAR-10 density
        "paper_density": {
            "event_shape": (3, 32, 32),
            "block_type": "conv",
            "num_blocks": [16, 16, 16],
            "hidden_size": 512,
            "hidden_act": "elu",
            "coeff_scope": "layer",
            "num_power_iterations": 5,
            "split": True,
            "prior": "diagonal",
            "data_transform": "center",
            "log_det_estimator": "truncated",
            "num_series_terms": 5,
        },
        # Chen et al. 2019, appendix: CIFAR-10 density
        "residual_flow": {
            "event_shape": (3, 32, 32),
            "block_type": "conv",
            "num_blocks": [16, 16, 16],
            "hidden_size": 512,
            "lipschitz_coeff": 0.98,
            "coeff_scope": "layer",
            "squeeze_first": False,
            "num_dense_blocks": 4,
            "data_transform": "logit",
            "logit_alpha": 0.05,
        },
    }

    prior: str = "normal"
    block_type: str = "mlp"
    num_blocks: list[int] | tuple[int, ...] = (8,)
    hidden_size: int = 128
    num_hidden_layers: int = 2
    kernel_sizes: list[int] | tuple[int, ...] = (3, 1, 3)
    hidden_act: str = "lipswish"
    preactivation: bool = True
    dropout: float | int = 0.0
    block_norm: str | None = None
    lipschitz_coeff: float | None = 0.9
    coeff_scope: str = "block"
    num_power_iterations: int = 2
    detach_sigma: bool = False
    use_actnorm: bool = True
    squeeze: bool = True
    squeeze_first: bool = True
    split: bool = False
    num_dense_blocks: int = 0
    dense_hidden_size: int = 128
    injective_padding: int = 0
    data_transform: str = "none"
    logit_alpha: float = 0.05
    log_det_estimator: str = "auto"
    exact_log_det_size: int = 64
    num_series_terms: int = 10
    num_exact_terms: int = 4
    roulette_stop_probability: float | None = None
    num_trace_samples: int = 1
    trace_distribution: str = "rademacher"
    neumann_gradient: bool = True
    inverse_tolerance: float | None = None
    inverse_max_iterations: int = 2000
    anderson_depth: int = 5
    feature_pooling: str = "none"
    density_weight: float | int = 0.0

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of one example with its channels of zeros."""
        channels, *size = self.event_shape
        return (channels + self.injective_padding, *size)

    @property
    def latent_size(self) -> int:
        """Number of dimensions of the latents; more than D where zeros are padded."""
        return math.prod(self.padded_shape)

    @property
    def layers_per_block(self) -> int:
        return len(self.kernel_sizes) if self.block_type == "conv" else self.num_hidden_layers + 1

    def squeezes(self, scale: int) -> bool:
        """Whether scale ``scale`` starts with a space-to-depth step."""
        return self.block_type == "conv" and self.squeeze and (scale > 0 or self.squeeze_first)

    def _check_at_least(self, **lows: int) -> None:
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")

    def validate_lipschitz(self):
        check_choice("coeff_scope", self.coeff_scope, COEFF_SCOPES)
        if self.hidden_act in STEEP_ACTIVATIONS:
            raise ValueError(
                f"hidden_act={self.hidden_act!r} has slopes up to {STEEP_ACTIVATIONS[self.hidden_act]}, so g would not be "
                "held below the coefficient; use 'lipswish' (silu / 1.1) or 'elu'"
            )
        check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        if self.lipschitz_coeff is not None and not 0 < self.lipschitz_coeff < 1:
            raise ValueError(
                f"lipschitz_coeff={self.lipschitz_coeff} must lie strictly between 0 and 1 (0.9 is usual): only then has "
                "x + g(x) an inverse"
            )
        if self.dropout != 0:
            raise ValueError(f"dropout={self.dropout} inside a block makes g random, so that it has no inverse; it must be 0")
        if self.block_norm is not None:
            raise ValueError(
                f"block_norm={self.block_norm!r} inside a block changes its Lipschitz constant with the batch; it must be "
                "None. use_actnorm=True normalises between blocks."
            )

    def validate_network(self):
        check_choice("block_type", self.block_type, BLOCK_TYPES)
        check_choice("feature_pooling", self.feature_pooling, FEATURE_POOLINGS)
        check_choice("data_transform", self.data_transform, DATA_TRANSFORMS)
        self._check_at_least(
            hidden_size=1,
            num_hidden_layers=0,
            num_power_iterations=1,
            num_dense_blocks=0,
            dense_hidden_size=1,
            injective_padding=0,
        )
        if not self.num_blocks or any(count < 0 for count in self.num_blocks):
            raise ValueError(f"num_blocks={self.num_blocks!r} must hold one count per scale, none negative")
        if not self.kernel_sizes or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes={self.kernel_sizes!r} must be odd, so that padding keeps the size")
        if not 0 < self.logit_alpha < 0.5:
            raise ValueError(f"logit_alpha={self.logit_alpha} must lie between 0 and 0.5")
        if self.density_weight < 0:
            raise ValueError(f"density_weight={self.density_weight} must not be negative")
        if self.density_weight > 0 and (self.injective_padding or self.lipschitz_coeff is None):
            raise ValueError(
                f"density_weight={self.density_weight} needs a density: injective_padding=0 and a lipschitz_coeff"
            )

    def validate_shapes(self):
        shape = tuple(self.event_shape)
        if self.block_type == "mlp":
            if len(self.num_blocks) != 1:
                raise ValueError(f"num_blocks={self.num_blocks!r}: block_type='mlp' has one scale, so one count")
            if self.injective_padding and len(shape) != 3:
                raise ValueError(f"injective_padding={self.injective_padding} needs images, not event_shape={shape}")
            return
        if len(shape) != 3:
            raise ValueError(f"event_shape={shape} must be (channels, height, width) for block_type='conv'")
        channels, height, width = self.padded_shape
        for scale in range(len(self.num_blocks)):
            if self.squeezes(scale):
                if height % 2 or width % 2:
                    raise ValueError(
                        f"event_shape={shape} cannot be squeezed at scale {scale + 1}: {height}x{width} is odd there. Use "
                        f"fewer scales than num_blocks={list(self.num_blocks)}, squeeze_first=False, or squeeze=False."
                    )
                channels, height, width = 4 * channels, height // 2, width // 2
            if self.split and scale + 1 < len(self.num_blocks):
                if channels % 2:
                    raise ValueError(f"split=True cannot halve the {channels} channels of scale {scale + 1}")
                channels //= 2

    def validate_estimators(self):
        check_choice("log_det_estimator", self.log_det_estimator, LOG_DET_ESTIMATORS)
        check_choice("trace_distribution", self.trace_distribution, TRACE_DISTRIBUTIONS)
        self._check_at_least(
            exact_log_det_size=0,
            num_series_terms=1,
            num_exact_terms=0,
            num_trace_samples=1,
            inverse_max_iterations=1,
            anderson_depth=0,
        )
        stop = self.roulette_stop_probability
        if stop is not None and not 0 < stop < 1:
            raise ValueError(f"roulette_stop_probability={stop} must lie between 0 and 1")
        if self.inverse_tolerance is not None and not self.inverse_tolerance > 0:
            raise ValueError(f"inverse_tolerance={self.inverse_tolerance} must be positive")


__all__ = ["InvertibleResNetConfig"]
