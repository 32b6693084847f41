"""NICE: non-linear independent components estimation by additive couplings.

Dinh, Krueger, Bengio 2015, https://arxiv.org/abs/1410.8516, and its reading in https://kexue.fm/archives/5776.

Split x into two parts (a, b). A coupling adds to one part a function of the other,

    b <- b + sign * m(a),          undone by        b <- b - sign * m(a),

so its Jacobian is triangular with unit diagonal and m is never inverted. Couplings alternate with a reordering of the
dimensions; a last diagonal scaling z = exp(s) * h is the only change of volume: log |det df/dx| = sum_i s_i.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_nice_flow import NiceFlowConfig
from .modeling_flow import FlowPreTrainedModel, exact_unless_training

if TYPE_CHECKING:
    # Needed by a saved folder, so they are named here: save_pretrained copies the files a model file imports.
    from .image_processing_flow import FlowImageProcessor  # noqa: F401
    from .pipeline_flow import UnconditionalImageGenerationPipeline  # noqa: F401


class CouplingOutput(nn.Linear):
    """The last layer of a coupling network: a class of its own, because `_init_weights` sees a layer and not its place."""


class NiceCoupling(nn.Module):
    """The network m of one coupling, ``(batch, in_features) -> (batch, out_features)``, and its sign."""

    def __init__(self, config: NiceFlowConfig, in_features: int, out_features: int):
        super().__init__()
        sizes = [in_features] + [config.hidden_size] * config.num_hidden_layers
        layers = []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), ACT2FN[config.hidden_act]]
        self.hidden = nn.Sequential(*layers)
        self.output = CouplingOutput(config.hidden_size, out_features)
        self.output_act = nn.Identity() if config.coupling_output_act is None else ACT2FN[config.coupling_output_act]
        self.sign = config.coupling_sign

    def forward(self, passive: Tensor, shifted: Tensor) -> Tensor:
        """The shift of the second part.

        Autocast lowers the precision of m in training alone: rounded to bfloat16, a passive part that differs in its last
        float32 bit can give another shift, and decoding would no longer undo encoding.
        """
        with exact_unless_training(self.training, passive.device):
            shift = self.output_act(self.output(self.hidden(passive.to(self.output.weight.dtype))))
        return self.sign * shift.to(shifted.dtype)


class DiagonalScaling(nn.Module):
    """``z = exp(s) * h`` with ``s = factor * weight``."""

    def __init__(self, size: int, factor: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.factor = factor

    @property
    def log_scale(self) -> Tensor:
        """s, ``(D,)``. ``exp(-s)`` is the standard deviation along each latent direction."""
        return self.factor * self.weight


class NiceFlowModel(FlowPreTrainedModel):
    r"""NICE flow with exact density, exact inverse and constant log-determinant.

    Example:

    ```python
    >>> import torch
    >>> from hfblog import NiceFlowConfig, NiceFlowModel
    >>> model = NiceFlowModel(NiceFlowConfig(event_shape=(1, 8, 8), num_levels=17, hidden_size=64, num_hidden_layers=2))
    >>> images = torch.randint(17, (16, 1, 8, 8)) / 16
    >>> model.initialize(images)
    >>> x = model.dequantize(images)
    >>> latents, log_det = model.encode(x)
    >>> torch.allclose(model.decode(latents), x, atol=1e-5)
    True
    >>> model.bits_per_dim(images).shape
    torch.Size([16])

    ```
    """

    config_class = NiceFlowConfig
    _auto_class = "AutoModel"
    _keep_in_fp32_modules_strict = ["scaling"]

    def __init__(self, config: NiceFlowConfig):
        super().__init__(config)
        size = config.event_size
        # Sizes of the parts trade places from one coupling to the next; they differ where the dimension is odd.
        parts = [(size + 1) // 2, size // 2]
        self.couplings = nn.ModuleList()
        for layer in range(config.num_coupling_layers):
            passive, shifted = parts if layer % 2 == 0 else parts[::-1]
            self.couplings.append(NiceCoupling(config, passive, shifted))
        self.scaling = DiagonalScaling(size, config.log_scale_factor)
        if config.permutation == "random":
            self.register_buffer("order", self._draw_order(config))
        self.post_init()

    @staticmethod
    def _draw_order(config: NiceFlowConfig) -> Tensor:
        """``(L, D)`` int64: row 0 orders all dimensions; row l holds an order of the new first and of the new second part."""
        size = config.event_size
        generator = torch.Generator("cpu").manual_seed(config.permutation_seed)
        rows = [torch.randperm(size, generator=generator, device="cpu")]
        for layer in range(1, config.num_coupling_layers):
            first = (size + 1) // 2 if layer % 2 == 0 else size // 2
            rows.append(torch.cat([torch.randperm(n, generator=generator, device="cpu") for n in (first, size - first)]))
        return torch.stack(rows)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        if isinstance(module, nn.Linear):
            if config.coupling_init == "uniform":
                init.uniform_(module.weight, -config.initializer_range, config.initializer_range)
                init.uniform_(module.bias, -config.initializer_range, config.initializer_range)
            elif config.coupling_init == "glorot":
                init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
            else:
                # Larger hidden weights (Kaiming's gain for ReLU) cost 1 nat on the digits: features that memorise.
                bound = 0.0 if isinstance(module, CouplingOutput) else module.in_features**-0.5
                init.uniform_(module.weight, -bound, bound)
                init.zeros_(module.bias)
        elif isinstance(module, DiagonalScaling):
            if config.scale_init == "glorot":
                # of a (1, D) kernel, as in the article's code
                init.normal_(module.weight, std=math.sqrt(2 / (1 + config.event_size)) / module.factor)
            else:
                init.zeros_(module.weight)
        elif module is self and config.permutation == "random":
            init.copy_(self.order, self._draw_order(config))

    @property
    def _needs_data(self) -> bool:
        return self.config.scale_init == "data"

    # --- order of the dimensions ---

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.partition == "interleaved":
            return x[:, 0::2], x[:, 1::2]
        return x.tensor_split([(x.shape[1] + 1) // 2], dim=1)

    def _merge(self, first: Tensor, second: Tensor) -> Tensor:
        if self.config.partition == "half":
            return torch.cat([first, second], dim=1)
        if first.shape[1] == second.shape[1]:
            return torch.stack([first, second], dim=2).flatten(1)
        return torch.cat([torch.stack([first[:, :-1], second], dim=2).flatten(1), first[:, -1:]], dim=1)

    @property
    def _ends_swapped(self) -> bool:
        # "reverse" moves the roles with the positions; the others leave the parts in exchanged places after an even
        # number of couplings, and are put back so that latent i sits where dimension i did.
        return self.config.permutation != "reverse" and self.config.num_coupling_layers % 2 == 0

    def _reorder(self, layer: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """What precedes coupling ``layer``. All orders exchange the two parts, which an even reversal does too."""
        if self.config.permutation == "reverse":
            return second.flip(1), first.flip(1)
        if layer == 0:
            return first, second
        if self.config.permutation == "swap":
            return second, first
        to_first, to_second = self.order[layer].tensor_split([second.shape[1]])
        return second[:, to_first], first[:, to_second]

    def _undo_reorder(self, layer: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.permutation != "random" or layer == 0:
            return self._reorder(layer, first, second)  # a reversal and an exchange undo themselves
        to_first, to_second = self.order[layer].tensor_split([first.shape[1]])
        return second[:, to_second.argsort()], first[:, to_first.argsort()]

    # --- the flow ---

    def _couple(self, x: Tensor) -> Tensor:
        """All couplings without the scaling, ``(batch, D) -> (batch, D)``, volume-preserving."""
        if self.config.permutation == "random":
            x = x[:, self.order[0]]
        first, second = self._split(x)
        for layer, coupling in enumerate(self.couplings):
            first, second = self._reorder(layer, first, second)
            second = second + coupling(first, second)
        return self._merge(second, first) if self._ends_swapped else self._merge(first, second)

    def _decouple(self, hidden: Tensor, shifted_back: bool = True) -> Tensor:
        """Inverse of `_couple`, to ``(batch, *event_shape)``; with ``shifted_back=False`` dimensions are only put in order."""
        config = self.config
        first, second = self._split(hidden)
        if self._ends_swapped:
            first, second = second, first
        for layer, coupling in reversed(list(enumerate(self.couplings))):
            if shifted_back:
                second = second - coupling(first, second)
            first, second = self._undo_reorder(layer, first, second)
        x = self._merge(first, second)
        if config.permutation == "random":
            x = x[:, self.order[0].argsort()]
        return x.unflatten(1, tuple(config.event_shape))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From data to latents.

        Args:
            x: ``(batch, *event_shape)``, continuous (see `dequantize`).

        Returns:
            latents ``(batch, D)`` and log |det df/dx| in nats, ``(batch,)``; the same for every x.

        Raises:
            ValueError: the shape does not fit the configuration.
        """
        hidden = self._couple(self.flatten(x))
        log_scale = self.scaling.log_scale.to(hidden.dtype)
        return hidden * log_scale.exp(), log_scale.sum().repeat(len(hidden))

    def decode(self, latents: Tensor) -> Tensor:
        """From latents ``(batch, D)`` to data ``(batch, *event_shape)``, the exact inverse of `encode`; differentiable.

        Raises:
            ValueError: the shape does not fit the configuration.
        """
        size = self.config.event_size
        if latents.ndim != 2 or latents.shape[1] != size:
            raise ValueError(f"expected latents of shape (batch, {size}), got {tuple(latents.shape)}")
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return self._decouple(latents / self.scaling.log_scale.to(latents.dtype).exp())

    def typical_width(self, log_det: Tensor) -> Tensor:
        # the spread of each latent direction, at the dimension that it takes the place of
        return self._decouple(torch.exp(-self.scaling.log_scale.detach())[None], shifted_back=False)

    def _fit(self, x: Tensor) -> None:
        """Set the scaling, so that every latent starts with the prior's standard deviation.

        Adam moves each log-scale by about one learning rate a step, and it has far to go (to 1.6 ... 4.5 on the digits, 9
        on MNIST's empty border): from zero, training spends its first epochs on nothing else.
        """
        # A constant dimension has no spread; the floor keeps its scale finite.
        std = self._couple(self.flatten(x)).std(0).clamp_min(1e-3)
        self.scaling.weight.copy_((math.log(self.prior.std) - std.log()) / self.scaling.factor)


__all__ = ["NiceFlowModel"]
