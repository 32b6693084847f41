"""Configuration of variational autoencoders."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from .configuration_bottleneck import BottleneckConfig, check_choice, check_not_negative, check_positive

NETWORKS = ("mlp", "conv")
DECODERS = ("bernoulli", "gaussian")
BINARIZATIONS = ("stochastic", "threshold", "none")


@strict
class VAEConfig(BottleneckConfig):
    r"""Configuration of a [`VAEModel`], the bottleneck whose label is the input itself.

    Kingma and Welling 2014, arXiv:1312.6114; Su Jianlin 2018, https://kexue.fm/archives/6181.

    Args:
        event_shape: shape of one example, ``(channels, height, width)`` for images.
        num_levels: grey levels of the images, which the image processor reads; None for data that are no images.
        network: ``"mlp"``, or ``"conv"``: convolutions of stride 2, mirrored in the decoder.
        hidden_sizes: hidden layers of the encoder; the decoder has them in reverse. They follow the convolutions of
            ``"conv"``.
        hidden_act: their activation.
        conv_channels, conv_kernel_size: of ``"conv"``.
        dropout: after every hidden layer.
        decoder: ``"bernoulli"``, q(x|z) of pixels that are 0 or 1, or ``"gaussian"``.
        binarization: how a ``"bernoulli"`` decoder takes values x in [0, 1]: ``"stochastic"`` draws pixels with probability
            x, anew in every training step, and by numbers that the image itself determines in evaluation; ``"threshold"``
            is x > 0.5; ``"none"`` scores x itself, which is no likelihood unless it is 0 or 1.
        decoder_std: standard deviation of a ``"gaussian"`` decoder; None learns one.
        min_decoder_std: the least that is learned: values on a grid would drive it to 0.
        importance_weighted: the loss is ``-log mean_s p(x, z_s) / q(z_s|x)`` over ``num_train_samples`` codes (Burda et al.
            2016, arXiv:1509.00519), a tighter bound than their mean.
        beta: 1 is the bound on the log-likelihood.
        latent_dim, bottleneck, ...: see [`BottleneckConfig`].

    Example:

    ```python
    >>> from hfblog import VAEConfig
    >>> VAEConfig(event_shape=(1, 8, 8), latent_dim=10).event_size
    64

    ```
    """

    model_type = "vae"
    keys_to_ignore_at_inference = ["distortion", "rate", "mean", "scale", "latents", "reconstruction"]
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_vae.VAEConfig",
        "AutoModel": "modeling_vae.VAEModel",
    }

    event_shape: list[int] | tuple[int, ...] = (1, 28, 28)
    num_levels: int | None = 256
    network: str = "mlp"
    hidden_sizes: list[int] | tuple[int, ...] = (512, 512)
    hidden_act: str = "relu"
    conv_channels: list[int] | tuple[int, ...] = (32, 64)
    conv_kernel_size: int = 3
    dropout: float | int = 0.0
    decoder: str = "bernoulli"
    binarization: str = "stochastic"
    decoder_std: float | int | None = None
    min_decoder_std: float | int = 0.01
    importance_weighted: bool = False
    latent_dim: int = 32
    beta: float | int = 1.0
    num_eval_samples: int = 1

    @property
    def event_size(self) -> int:
        """Number of dimensions D of one example."""
        return math.prod(self.event_shape)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "VAEConfig":
        """This configuration: transformers would take the field `decoder` for a nested one."""
        return self

    def validate_networks(self):
        check_choice("network", self.network, NETWORKS)
        check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        check_positive(self, "event_shape", "hidden_sizes", "conv_channels", "conv_kernel_size")
        check_not_negative(self, "dropout")
        if not self.event_shape:
            raise ValueError("event_shape=() must hold one or more sizes")
        if self.dropout >= 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        if self.network == "conv" and len(self.event_shape) != 3:
            raise ValueError(f"network='conv' takes images (channels, height, width), not event_shape={self.event_shape}")
        if self.network == "conv" and not self.conv_channels:
            raise ValueError("conv_channels=() must hold one or more sizes for network='conv'")
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size} must be odd")
        if self.num_levels is not None and self.num_levels < 2:
            raise ValueError(f"num_levels={self.num_levels} must be at least 2, or None for data that are no images")

    def validate_decoder(self):
        check_choice("decoder", self.decoder, DECODERS)
        check_choice("binarization", self.binarization, BINARIZATIONS)
        check_positive(self, "decoder_std", "min_decoder_std")
        if self.bottleneck == "none":
            raise ValueError("bottleneck='none' leaves an autoencoder without a prior: a VAE needs 'fixed', 'hinge' or 'dual'")

    def validate_importance_weighting(self):
        if not self.importance_weighted:
            return
        wrong = {
            "bottleneck": self.bottleneck != "fixed",
            "beta": self.beta != 1,
            "kl_warmup_steps": self.kl_warmup_steps != 0,
            "free_bits": self.free_bits != 0,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(
                    f"importance_weighted=True is the log-likelihood's bound: no place for {name}={getattr(self, name)!r}"
                )


__all__ = ["VAEConfig"]
