"""What configurations of a variational bottleneck share: posterior, prior, and how many nats a representation may keep.

No ``from __future__ import annotations`` in configuration files: `strict` reads the annotations as objects, and checks no
type where it finds strings.
"""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

CONSTRAINTS = ("fixed", "hinge", "dual", "none")
DUAL_UPDATES = ("exponential", "linear")
POSTERIORS = ("diag", "full")
PRIORS = ("standard", "learned", "mixture", "vamp")
STD_PARAMS = ("log_var", "softplus")
# Weights of the layer that predicts a Cholesky factor: half a gigabyte in float32.
MOST_FACTOR_WEIGHTS = 2**27


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


def check_not_negative(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)!r} must not be negative")


def num_scale_outputs(posterior: str, latent_dim: int, input_dim: int) -> int:
    """Numbers that describe a posterior's scale: K standard deviations, or the lower triangle of a Cholesky factor.

    Raises:
        ValueError: the layer that predicts them would not fit into memory.
    """
    if posterior == "diag":
        return latent_dim
    count = latent_dim * (latent_dim + 1) // 2
    if count * input_dim > MOST_FACTOR_WEIGHTS:
        most = int((2 * MOST_FACTOR_WEIGHTS / input_dim) ** 0.5)
        raise ValueError(
            f"posterior='full' with latent_dim={latent_dim} predicts {count:,} entries of a Cholesky factor from {input_dim} "
            f"features, {count * input_dim:,} weights: take posterior='diag', or a latent_dim of at most {most}"
        )
    return count


@strict
class BottleneckConfig(PreTrainedConfig):
    r"""Fields of every model with a variational bottleneck: z ~ N(mu(x), Sigma(x)), and a rate KL(p(z|x) || r(z)) in nats.

    Args:
        latent_dim: dimensions K of the code z.
        bottleneck: what holds the rate R down. ``"fixed"`` adds ``beta * R`` to the loss. ``"hinge"`` adds
            ``beta * max(R - target_rate, 0)`` for each example (the article's capacity). ``"dual"`` adds
            ``multiplier * (R - target_rate)`` and moves the multiplier, a buffer, after every training step until the mean
            rate is ``target_rate`` (Peng et al. 2019, arXiv:1810.00821). ``"none"`` is the deterministic twin: z = mu.
        beta: weight of the rate: the article's lambda, the paper's beta. Where the multiplier starts under ``"dual"``.
        target_rate: nats that a code may keep; of ``"hinge"`` and ``"dual"``.
        dual_update: ``"exponential"`` changes the logarithm of the multiplier by ``dual_lr * log(R / target_rate)``, at most
            ``dual_lr`` a step, whatever the scale of the loss. ``"linear"`` is the paper's
            ``max(0, multiplier + dual_lr * (R - target_rate))``.
        dual_lr: step of the multiplier.
        kl_warmup_steps: training steps over which the weight of the rate rises from 0; forward passes are counted.
        free_bits: nats a dimension and example below which the rate costs nothing; of a diagonal posterior with a
            standard or learned prior.
        posterior: ``"diag"``, or ``"full"``, whose Cholesky factor is predicted.
        std_param: a standard deviation from the network's output h: ``"log_var"`` is exp(h / 2), h in [-20, 10];
            ``"softplus"`` is softplus(h + std_shift).
        std_shift: -5 in the paper, an almost deterministic start.
        prior: r(z). ``"standard"`` N(0, I); ``"learned"`` mean and scale; ``"mixture"`` of learned diagonal Gaussians;
            ``"vamp"``, the mixture of the posteriors at learned pseudo-inputs (Tomczak and Welling 2018, arXiv:1705.07120),
            which stand in the space of the encoder's features. The rate of the last two is estimated with the latent
            samples.
        num_components: components of the last two.
        num_train_samples: latent samples an example in training.
        num_eval_samples: latent samples an example where evaluation samples.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    auto_classes: ClassVar[dict[str, str]] = {}
    _auto_class = "AutoConfig"

    latent_dim: int = 128
    bottleneck: str = "fixed"
    beta: float | int = 1e-3
    target_rate: float | int | None = None
    dual_update: str = "exponential"
    dual_lr: float | int = 0.01
    kl_warmup_steps: int = 0
    free_bits: float | int = 0.0
    posterior: str = "diag"
    std_param: str = "log_var"
    std_shift: float | int = -5.0
    prior: str = "standard"
    num_components: int = 50
    num_train_samples: int = 1
    num_eval_samples: int = 12

    def __post_init__(self, **kwargs):
        # Set anew on every load: references that came from a Hub repository carry its name, and would keep pointing there.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        self.auto_map = dict(self.auto_classes)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "BottleneckConfig":
        """A named configuration, with single fields replaced by ``overrides``."""
        check_choice("preset", name, tuple(cls.presets))
        return cls(**(cls.presets[name] | overrides))

    @property
    def layer_settings(self) -> dict[str, Any]:
        """The arguments of a [`VariationalBottleneck`] but its input's size."""
        names = (
            "bottleneck beta target_rate dual_update dual_lr kl_warmup_steps free_bits posterior std_param std_shift prior "
            "num_components"
        )
        return {name: getattr(self, name) for name in names.split()}

    def validate_constraint(self):
        check_choice("bottleneck", self.bottleneck, CONSTRAINTS)
        check_choice("dual_update", self.dual_update, DUAL_UPDATES)
        check_not_negative(self, "beta", "kl_warmup_steps", "free_bits")
        check_positive(self, "dual_lr")
        if self.target_rate is not None and not 0 < self.target_rate < math.inf:
            raise ValueError(f"target_rate={self.target_rate} must be a positive number of nats")
        needs = self.bottleneck in ("hinge", "dual")
        if needs and self.target_rate is None:
            raise ValueError(f"bottleneck={self.bottleneck!r} needs target_rate, the nats that a code may keep")
        if not needs and self.target_rate is not None:
            raise ValueError(
                f"target_rate={self.target_rate} belongs to bottleneck='dual' or 'hinge', but bottleneck={self.bottleneck!r}"
            )
        if self.bottleneck == "dual" and self.dual_update == "exponential" and self.beta == 0:
            raise ValueError("beta=0 cannot grow by a factor: start an exponential dual_update above 0")
        if self.free_bits and self.bottleneck == "hinge":
            raise ValueError(
                f"free_bits={self.free_bits} has no place in bottleneck='hinge', whose target_rate is free already"
            )
        if self.free_bits and (self.posterior != "diag" or self.prior not in ("standard", "learned")):
            raise ValueError(
                f"free_bits={self.free_bits} needs a rate for each dimension: posterior='diag' and prior='standard' or "
                f"'learned', not {self.posterior!r} and {self.prior!r}"
            )

    def validate_distributions(self):
        check_choice("posterior", self.posterior, POSTERIORS)
        check_choice("std_param", self.std_param, STD_PARAMS)
        check_choice("prior", self.prior, PRIORS)
        check_positive(self, "latent_dim", "num_components", "num_train_samples", "num_eval_samples")
        num_scale_outputs(self.posterior, self.latent_dim, 1)


__all__ = ["BottleneckConfig"]
