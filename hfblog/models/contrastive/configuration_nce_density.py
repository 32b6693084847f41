"""Configuration of densities learned by noise contrastive estimation."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_contrastive import ContrastiveConfig, build_nested_config, check_choice, check_positive

ENERGIES = ("quadratic", "quartic", "mlp", "conv", "custom")
NOISES = ("uniform", "gaussian", "gaussian_mixture", "flow")
DENSITY_LOSSES = ("nce", "density_ratio", "neg", "ranking", "random_softmax", "conditional", "full", "telescoping")
DENSITY_PARTITIONS = ("learned", "fixed", "none")
# These say nothing of the constant c.
WITHOUT_CONSTANT = ("neg", "ranking", "random_softmax", "conditional", "full")
# These set every datum beside a whole number of noise samples of its own.
WITH_OWN_NOISE = ("ranking", "random_softmax", "conditional", "telescoping")
# These learn a ratio to the noise.
RATIO_LOSSES = ("density_ratio", "neg", "telescoping")


@strict
class NCEDensityConfig(ContrastiveConfig):
    r"""A density ``log p(x) = G(x) - c`` whose constant c, the log-partition function, is learned like any parameter.

    Gutmann and Hyvärinen 2012, https://jmlr.org/papers/v13/gutmann12a.html; Su Jianlin 2018, https://kexue.fm/archives/5617.

    Args:
        event_shape: shape of one example without the batch axis, ``(channels, height, width)`` for images.
        energy: ``"quadratic"`` is ``-G(x) = x'Ax - h'x``; ``"quartic"`` adds ``sum_i b_i x_i^4`` (the article's
            ``a x^2 + b x^4`` in one dimension); ``"mlp"`` and ``"conv"`` (images) are networks; ``"custom"`` is a module that
            you give to [`NCEDensityModel`].
        hidden_sizes: hidden layers of ``"mlp"``, and those after the convolutions of ``"conv"``.
        hidden_act: their activation; a smooth one, so that `score` is smooth.
        conv_channels, conv_kernel_size: convolutions of stride 2 of ``"conv"``.
        dropout: after every hidden layer.
        relative_to_noise: whether the network states ``G(x) - log q(x)``: it corrects the noise instead of learning all of
            the density, its tails are those of the noise, and it starts at ``p = q``.
        num_levels: number of grey levels K of quantised data, whose density is that of ``(k + u) / K`` for level k; None for
            data that were never quantised.
        dequantization: ``"uniform"`` adds ``u ~ U(0, 1)`` to the level; ``"none"`` leaves the data as they are.
        noise: ``"gaussian"``, ``"gaussian_mixture"``, ``"uniform"`` (in a box), all fitted by
            `NCEDensityModel.fit_noise`; or ``"flow"``, the model of ``noise_config``.
        noise_config: configuration of a model with ``log_prob`` and ``sample``, such as `NiceFlowConfig`; see
            `NCEDensityModel.from_noise_pretrained`.
        noise_covariance: ``"full"`` or ``"diagonal"``; of the Gaussians.
        noise_scale: factor on the Gaussians' fitted standard deviations.
        noise_margin: how far the fitted box reaches beyond the data, in parts of their range.
        num_components: of the mixture.
        noise_ratio: nu, noise samples a datum; need not be whole, except where every datum has its own.
        loss_type: see [`NCELoss`]; ``"full"`` integrates over a grid, in one or two dimensions. ``"telescoping"`` (Rhodes, Xu,
            Gutmann 2020, arXiv:2006.12204) learns the ratio of data to noise as a sum of ``num_bridges`` ratios between
            neighbours on a path from one to the other, where they are too far apart to be told from each other with profit.
        log_partition: c. ``"learned"``, ``"fixed"`` at ``log_partition_init`` until `NCEDensityModel.normalize` sets it, or
            ``"none"``, 0. Losses that do not depend on c take the last two.
        log_partition_init: where c starts, or stays.
        num_bridges: of ``"telescoping"``.
        bridge_power: the path's point m of M is ``sqrt(1 - a^2) x + a y`` with ``a = (m / M) ** bridge_power``.
        perturbation_scale: standard deviation, in units of the data's, of the noise around a datum of ``"conditional"``.
        quadrature_points: grid points along each axis, of ``"full"`` and of `NCEDensityModel.check_normalization`.

    Example:

    ```python
    >>> from hfblog import NCEDensityConfig
    >>> config = NCEDensityConfig(event_shape=(1,), energy="quartic", noise="uniform", noise_ratio=0.5)
    >>> config.event_size, config.log_partition
    (1, 'learned')

    ```
    """

    model_type = "nce_density"
    keys_to_ignore_at_inference = ["energy", "log_partition", "noise_logits"]
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_nce_density.NCEDensityConfig",
        "AutoModel": "modeling_nce_density.NCEDensityModel",
    }

    event_shape: list[int] | tuple[int, ...] = (2,)
    energy: str = "mlp"
    hidden_sizes: list[int] | tuple[int, ...] = (128, 128, 128)
    hidden_act: str = "silu"
    conv_channels: list[int] | tuple[int, ...] = (32, 64)
    conv_kernel_size: int = 3
    dropout: float | int = 0.0
    relative_to_noise: bool = False
    num_levels: int | None = None
    dequantization: str = "none"
    noise: str = "gaussian"
    noise_config: dict | PreTrainedConfig | None = None
    noise_covariance: str = "full"
    noise_scale: float | int = 1.0
    noise_margin: float | int = 0.1
    num_components: int = 8
    noise_ratio: float | int = 10
    loss_type: str = "nce"
    log_partition: str = "learned"
    log_partition_init: float | int = 0.0
    num_bridges: int = 4
    bridge_power: float | int = 2.0
    perturbation_scale: float | int = 0.3
    quadrature_points: int = 512

    def __post_init__(self, **kwargs):
        if isinstance(self.noise_config, dict):
            try:
                self.noise_config = build_nested_config("noise_config", self.noise_config)
            except ValueError:
                # As remote code, where its type is not registered, the model finds the class beside its own.
                if "auto_map" not in self.noise_config:
                    raise
        super().__post_init__(**kwargs)

    @property
    def event_size(self) -> int:
        """Number of dimensions D of one example."""
        return math.prod(self.event_shape)

    @property
    def learns_ratio(self) -> bool:
        """Whether the energy is that of p(x) / q(x) and not of p(x)."""
        return self.relative_to_noise or self.loss_type in RATIO_LOSSES

    @property
    def num_energies(self) -> int:
        """How many numbers the energy gives for a point: one for each bridge."""
        return self.num_bridges if self.loss_type == "telescoping" else 1

    def validate_event(self):
        if not self.event_shape or any(size < 1 for size in self.event_shape):
            raise ValueError(f"event_shape={self.event_shape!r} must hold one or more positive sizes")
        check_choice("dequantization", self.dequantization, ("uniform", "none"))
        if self.num_levels is not None and self.num_levels < 2:
            raise ValueError(f"num_levels={self.num_levels} must be at least 2, or None for data that were not quantised")
        if (self.num_levels is None) != (self.dequantization == "none"):
            raise ValueError(
                f"dequantization={self.dequantization!r} with num_levels={self.num_levels}: grey levels have a density only "
                "with 'uniform' noise, and other data have no levels"
            )

    def validate_energy(self):
        check_choice("energy", self.energy, ENERGIES)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        check_positive(self, "hidden_sizes", "conv_channels", "conv_kernel_size")
        if self.energy == "conv" and (len(self.event_shape) != 3 or not self.conv_channels):
            raise ValueError(
                f"energy='conv' needs conv_channels and an event_shape (channels, height, width), not {self.conv_channels!r} "
                f"and {self.event_shape!r}"
            )
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size} must be odd")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")

    def validate_noise(self):
        check_choice("noise", self.noise, NOISES)
        check_choice("noise_covariance", self.noise_covariance, ("full", "diagonal"))
        check_positive(self, "noise_ratio", "noise_scale", "num_components", "perturbation_scale")
        if not 0 <= self.noise_margin < math.inf:
            raise ValueError(f"noise_margin={self.noise_margin} must not be negative")
        if (self.noise == "flow") != (self.noise_config is not None):
            raise ValueError(f"noise={self.noise!r}: noise_config is what 'flow' builds, and belongs to no other")

    def validate_loss(self):
        check_choice("loss_type", self.loss_type, DENSITY_LOSSES)
        check_choice("log_partition", self.log_partition, DENSITY_PARTITIONS)
        check_positive(self, "num_bridges", "bridge_power", "quadrature_points")
        if self.log_partition == "learned" and self.loss_type in WITHOUT_CONSTANT:
            raise ValueError(
                f"log_partition='learned' learns nothing from loss_type={self.loss_type!r}, which does not depend on c; use "
                "'fixed' and, after training, normalize()"
            )
        if not math.isfinite(self.log_partition_init):
            raise ValueError(f"log_partition_init={self.log_partition_init} must be finite")
        if self.log_partition == "none" and self.log_partition_init:
            raise ValueError(f"log_partition_init={self.log_partition_init} has no place in log_partition='none'")
        if self.loss_type in WITH_OWN_NOISE and self.noise_ratio != int(self.noise_ratio):
            raise ValueError(f"noise_ratio={self.noise_ratio} must be a whole number for loss_type={self.loss_type!r}")
        if self.relative_to_noise and self.loss_type in RATIO_LOSSES:
            raise ValueError(f"relative_to_noise=True is what loss_type={self.loss_type!r} does by itself")
        if self.relative_to_noise and self.loss_type == "random_softmax":
            raise ValueError("relative_to_noise=True has no place in loss_type='random_softmax', which leaves log q out")
        if self.loss_type == "full" and self.event_size > 2:
            raise ValueError(
                f"loss_type='full' integrates over a grid, in one or two dimensions, not in the {self.event_size} of "
                f"event_shape={self.event_shape!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        if isinstance(self.noise_config, PreTrainedConfig):
            # a pipeline of the noise is none of the whole
            content["noise_config"].pop("custom_pipelines", None)
        return content


__all__ = ["NCEDensityConfig"]
