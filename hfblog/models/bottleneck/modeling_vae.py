"""Variational autoencoders on the layer that classifiers with a bottleneck use: the label is the input itself.

Su Jianlin 2018, https://kexue.fm/archives/6181; Kingma and Welling 2014, arXiv:1312.6114. For codes z ~ q(z|x) the loss

    E_z[-log p(x|z)] + beta * KL(q(z|x) || p(z)) >= -log p(x)        (beta = 1, in nats)

bounds the log-likelihood, and log p(x) >= E log 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x) does so more tightly with every sample
(Burda, Grosse, Salakhutdinov 2016, arXiv:1509.00519).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from .configuration_vae import VAEConfig
from .encoders import ConvEncoder, MLPEncoder, strided_sizes
from .example_noise import keys_of_examples, normal_of_examples, uniform_of_examples
from .variational_bottleneck import (
    LOG_2PI,
    BottleneckOutput,
    GaussianPosterior,
    VampPrior,
    VariationalBottleneck,
    draw_normal,
    init_bottleneck_weights,
    interpolate_latents,
)

# codes decoded at a time where many are needed: a bound on memory, not on what is computed
CODES_AT_A_TIME = 5000
# where the noise of an example's codes ends, that of its pixels begins
PIXEL_SEED = 2


@dataclass
class VAEOutput(ModelOutput):
    """Output of a [`VAEModel`].

    Args:
        loss: scalar, in nats; with ``beta=1`` an upper bound on the mean of -log p(x).
        distortion: ``(batch,)``, E[-log p(x|z)] in nats over the codes drawn.
        rate: ``(batch,)``, KL(q(z|x) || p(z)) in nats.
        mean: ``(batch, K)``, mean codes.
        scale: standard deviations ``(batch, K)`` or Cholesky factors ``(batch, K, K)``.
        latents: ``(batch, samples, K)``.
        reconstruction: ``(batch, *event_shape)``, mean of q(x|z) at the first code.
    """

    loss: Tensor | None = None
    distortion: Tensor | None = None
    rate: Tensor | None = None
    mean: Tensor | None = None
    scale: Tensor | None = None
    latents: Tensor | None = None
    reconstruction: Tensor | None = None


class MLPDecoder(nn.Module):
    """Codes through hidden layers to one number for each dimension of the event."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.body = MLPEncoder(config.latent_dim, config.hidden_sizes[::-1], config.hidden_act, config.dropout)
        self.output = nn.Linear(self.body.output_size, config.event_size)
        self.event_shape = tuple(config.event_shape)

    def forward(self, latents: Tensor) -> Tensor:
        """``(codes, K) -> (codes, *event_shape)``."""
        return self.output(self.body(latents)).unflatten(1, self.event_shape)


class ConvDecoder(nn.Module):
    """The mirror of [`ConvEncoder`]: hidden layers, then transposed convolutions of stride 2."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, height, width = config.event_shape
        sizes = strided_sizes(height, width, len(config.conv_channels))[::-1]
        self.first_shape = (config.conv_channels[-1], *sizes[0])
        self.body = MLPEncoder(
            config.latent_dim, [*config.hidden_sizes[::-1], math.prod(self.first_shape)], config.hidden_act, config.dropout
        )
        widths = [*config.conv_channels[::-1], channels]
        kernel = config.conv_kernel_size
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(
                widths[index],
                widths[index + 1],
                kernel,
                stride=2,
                padding=kernel // 2,
                # a stride of 2 maps both 2n - 1 and 2n to n: this tells which it was
                output_padding=tuple(sizes[index + 1][axis] - (2 * sizes[index][axis] - 1) for axis in (0, 1)),
            )
            for index in range(len(sizes) - 1)
        )
        self.act = ACT2FN[config.hidden_act]

    def forward(self, latents: Tensor) -> Tensor:
        x = self.body(latents).unflatten(1, self.first_shape)
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else self.act(x))
        return x


class VAEModel(PreTrainedModel):
    r"""Variational autoencoder over images or vectors.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import VAEConfig, VAEModel
    >>> model = VAEModel(VAEConfig(event_shape=(1, 8, 8), latent_dim=4, hidden_sizes=(32,))).eval()
    >>> images = torch.randint(17, (6, 1, 8, 8)) / 16
    >>> model.initialize(images)
    >>> model(images).loss.item() > 0
    True
    >>> model.sample(5).shape, model.reconstruct(images).shape, model.log_likelihood(images, num_samples=50).shape
    (torch.Size([5, 1, 8, 8]), torch.Size([6, 1, 8, 8]), torch.Size([6]))
    >>> model.interpolate(images[:2], images[2:4], steps=7).shape
    torch.Size([2, 7, 1, 8, 8])

    ```
    """

    config_class = VAEConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _auto_class = "AutoModel"
    _no_split_modules = ["VariationalBottleneck"]
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = ["bottleneck.multiplier", "log_std"]
    accepts_loss_kwargs = False

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        if config.network == "conv":
            self.encoder = ConvEncoder(
                config.event_shape,
                config.conv_channels,
                config.conv_kernel_size,
                config.hidden_sizes,
                config.hidden_act,
                config.dropout,
            )
            self.decoder = ConvDecoder(config)
        else:
            self.encoder = MLPEncoder(config.event_size, config.hidden_sizes, config.hidden_act, config.dropout)
            self.decoder = MLPDecoder(config)
        self.bottleneck = VariationalBottleneck(self.encoder.output_size, config.latent_dim, **config.layer_settings)
        learns_std = config.decoder == "gaussian" and config.decoder_std is None
        self.log_std = nn.Parameter(torch.empty((), dtype=torch.float32)) if learns_std else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if init_bottleneck_weights(module):
            return
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif module is self and self.log_std is not None:
            init.zeros_(self.log_std)

    @torch.no_grad()
    def initialize(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> None:
        """Set what depends on data, once before training: the decoder's mean image, and pseudo-inputs of a VampPrior.

        Args:
            pixel_values: training examples ``(batch, *event_shape)``.
            generator: picks those whose features become pseudo-inputs.
        """
        self.check_inputs(pixel_values)
        mean = pixel_values.float().mean(0)
        if isinstance(self.decoder, MLPDecoder):
            bernoulli = self.config.decoder == "bernoulli"
            # a pixel that is never lit must stay possible
            bias = torch.logit(mean.clamp(0.005, 0.995)) if bernoulli else mean
            self.decoder.output.bias.copy_(bias.flatten())
        prior = self.bottleneck.prior
        if isinstance(prior, VampPrior):
            count = len(prior.pseudo_inputs)
            rows = torch.randperm(len(pixel_values), generator=generator).repeat(-(-count // len(pixel_values)))[:count]
            features = self.features(pixel_values[rows])
            # a little apart: equal pseudo-inputs would stay equal
            prior.pseudo_inputs.copy_(features + 0.01 * draw_normal(tuple(features.shape), features, generator))

    # --- parts ---

    def check_inputs(self, pixel_values: Tensor) -> None:
        """Refuse another shape, and what a Bernoulli decoder has no probability for."""
        expected = tuple(self.config.event_shape)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"pixel_values must be (batch, {', '.join(map(str, expected))}), got {tuple(pixel_values.shape)}")
        # looking at values would break a compiled graph, or wait for the accelerator
        if torch.compiler.is_compiling() or pixel_values.device.type != "cpu" or not pixel_values.numel():
            return
        low, high = pixel_values.aminmax()
        if not torch.isfinite(high - low):
            raise ValueError("pixel_values hold NaN or infinite values")
        if self.config.decoder == "bernoulli" and (low < 0 or high > 1):
            raise ValueError(
                f"a Bernoulli decoder needs pixel_values in [0, 1], got [{low:g}, {high:g}]; use decoder='gaussian' for others"
            )

    def binarize(self, pixel_values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The event that the model states the likelihood of; see ``binarization`` in [`VAEConfig`].

        Without a generator, training draws pixels, and evaluation takes those that the image itself determines.
        """
        config = self.config
        if config.decoder == "gaussian" or config.binarization == "none":
            return pixel_values
        if config.binarization == "threshold":
            return (pixel_values > 0.5).to(pixel_values.dtype)
        if self.training or generator is not None:
            device = pixel_values.device if generator is None else generator.device
            uniform = torch.rand(pixel_values.shape, generator=generator, device=device).to(pixel_values.device)
        else:
            uniform = uniform_of_examples(keys_of_examples(pixel_values), tuple(config.event_shape), PIXEL_SEED)
        return (uniform < pixel_values).to(pixel_values.dtype)

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(2 * x - 1 if self.config.decoder == "bernoulli" else x)

    @property
    def decoder_std(self) -> Tensor | float:
        """Standard deviation of a Gaussian decoder."""
        if self.log_std is None:
            return self.config.decoder_std
        return self.log_std.float().exp() + self.config.min_decoder_std

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Logits of a Bernoulli decoder, means of a Gaussian one, ``(codes, K) -> (codes, *event_shape)``."""
        dtype = next(self.decoder.parameters()).dtype
        return self.decoder(latents.to(dtype)).float()

    def mean_of_raw(self, raw: Tensor) -> Tensor:
        return raw.sigmoid() if self.config.decoder == "bernoulli" else raw

    def distortion(self, raw: Tensor, x: Tensor) -> Tensor:
        """``-log p(x|z)`` in nats, ``(batch, samples)``, of decoded codes ``(batch, samples, *event_shape)``."""
        x = x[:, None].float()
        if self.config.decoder == "bernoulli":
            # softplus(l) - x l, summed as two: a product with the images, where they would be copied for every sample
            return F.softplus(raw).flatten(2).sum(2) - (raw * x).flatten(2).sum(2)
        std = torch.as_tensor(self.decoder_std, dtype=torch.float32, device=raw.device)
        squared = ((x - raw) / std).square().flatten(2).sum(2)
        return 0.5 * squared + self.config.event_size * (std.log() + 0.5 * LOG_2PI)

    # --- the way through ---

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
    ) -> VAEOutput | tuple:
        """The bound of each example, and the loss.

        Args:
            pixel_values: ``(batch, *event_shape)``, in [0, 1] for a Bernoulli decoder.
            noise: standard normal numbers ``(batch, samples, K)``. By default training draws them, and evaluation takes
                those that an example's own values determine.
            return_loss: whether the output has a loss.
            return_dict: a [`VAEOutput`], or a tuple of its fields that are not None.

        Raises:
            ValueError: a shape or values that do not fit the configuration.
        """
        config = self.config
        return_dict = return_dict if return_dict is not None else config.return_dict
        self.check_inputs(pixel_values)
        if noise is None and self.training:
            noise = draw_normal((len(pixel_values), config.num_train_samples, config.latent_dim), pixel_values)
        elif noise is None:
            noise = self.noise_of(pixel_values, config.num_eval_samples)
        x = self.binarize(pixel_values)
        found = self.bottleneck(self.features(x), noise=noise)
        raw = self.decode_raw(found.latents.flatten(0, 1)).unflatten(0, found.latents.shape[:2])
        distortion = self.distortion(raw, x)
        loss = None
        if return_loss:
            if config.importance_weighted:
                posterior = GaussianPosterior(found.mean, found.scale)
                log_weights = self.log_weights(posterior, noise, distortion)
                loss = math.log(noise.shape[1]) - log_weights.logsumexp(1).mean()
            else:
                loss = distortion.mean() + found.penalty
        output = VAEOutput(
            loss=loss,
            distortion=distortion.mean(1),
            rate=found.rate,
            mean=found.mean,
            scale=found.scale,
            latents=found.latents,
            reconstruction=self.mean_of_raw(raw[:, 0]),
        )
        return output if return_dict else output.to_tuple()

    def noise_of(self, pixel_values: Tensor, num_samples: int) -> Tensor:
        return normal_of_examples(keys_of_examples(pixel_values), (num_samples, self.config.latent_dim))

    def log_weights(self, posterior: GaussianPosterior, noise: Tensor, distortion: Tensor) -> Tensor:
        """``log p(x, z) / q(z|x)`` in nats, ``(batch, samples)``, of the codes that the noise makes."""
        log_prior = self.bottleneck.prior.log_prob(posterior.transform(noise))
        return log_prior - posterior.log_prob_of_noise(noise) - distortion

    # --- what users ask ---

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> BottleneckOutput:
        """Posterior and rate of each example; ``mean`` ``(batch, K)`` is its code."""
        self.check_inputs(pixel_values)
        noise = self.noise_of(pixel_values, self.config.num_eval_samples)
        return self.bottleneck(self.features(self.binarize(pixel_values)), noise=noise)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Means of q(x|z): codes ``(..., K) -> (..., *event_shape)``; in [0, 1] for a Bernoulli decoder."""
        if latents.shape[-1:] != (self.config.latent_dim,):
            raise ValueError(f"latents must be (..., {self.config.latent_dim}), got {tuple(latents.shape)}")
        flat = latents.reshape(-1, self.config.latent_dim)
        decoded = torch.cat([self.mean_of_raw(self.decode_raw(part)) for part in flat.split(CODES_AT_A_TIME)])
        return decoded.view(*latents.shape[:-1], *decoded.shape[1:])

    def sample(
        self,
        num_samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        sample_pixels: bool = False,
    ) -> Tensor:
        """New examples ``(num_samples, *event_shape)``: codes of the prior, decoded.

        Args:
            temperature: factor of the codes' spread; below 1 for likelier, less various examples.
            generator: where codes and pixels are drawn from.
            sample_pixels: draw from q(x|z) instead of giving its mean, which looks better.
        """
        means = self.decode(self.bottleneck.sample(num_samples, temperature, generator))
        if not sample_pixels:
            return means
        noise = draw_normal(tuple(means.shape), means, generator)
        if self.config.decoder == "gaussian":
            return means + self.decoder_std * noise
        return (torch.special.ndtr(noise) < means).to(means.dtype)

    def reconstruct(self, pixel_values: Tensor) -> Tensor:
        """What the mean codes of examples give back, ``(batch, *event_shape)``."""
        return self.decode(self.encode(pixel_values).mean)

    def interpolate(self, x1: Tensor, x2: Tensor, steps: int = 9, mode: str = "spherical") -> Tensor:
        """Examples between two: ``(batch, steps, *event_shape)``, decoded from `interpolate_latents` of the mean codes."""
        return self.decode(interpolate_latents(self.encode(x1).mean, self.encode(x2).mean, steps, mode))

    @torch.no_grad()
    def log_likelihood(self, pixel_values: Tensor, num_samples: int = 500, generator: torch.Generator | None = None) -> Tensor:
        """Importance-weighted lower bound on log p(x) in nats, ``(batch,)``; tighter with every sample.

        Args:
            pixel_values: ``(batch, *event_shape)``.
            num_samples: codes an example, S.
            generator: of the codes; by default each example has noise of its own, the same in every call.
        """
        self.check_inputs(pixel_values)
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1")
        was_training = self.training
        self.eval()
        found = []
        rows = max(1, CODES_AT_A_TIME // num_samples)
        for part in pixel_values.split(rows):
            shape = (len(part), num_samples, self.config.latent_dim)
            noise = self.noise_of(part, num_samples) if generator is None else draw_normal(shape, part, generator)
            x = self.binarize(part)
            posterior = self.bottleneck.posterior(self.features(x))
            weights = []
            for some in noise.split(CODES_AT_A_TIME, dim=1):
                latents = posterior.transform(some)
                raw = self.decode_raw(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
                weights.append(self.log_weights(posterior, some, self.distortion(raw, x)).double())
            found.append(torch.cat(weights, 1).logsumexp(1) - math.log(num_samples))
        self.train(was_training)
        return torch.cat(found)


__all__ = ["VAEModel", "VAEOutput"]
