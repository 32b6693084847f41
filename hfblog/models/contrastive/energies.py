"""Functions G with p(x) proportional to exp(G(x)): events to one number, or several, an example."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_nce_density import NCEDensityConfig


class PolynomialEnergy(nn.Module):
    """``G(x) = h'x - x'Ax - sum_i b_i x_i^4``, in the data's own units.

    Args:
        event_size: D.
        num_outputs: how many of them.
        quartic: whether there is a b.
    """

    def __init__(self, event_size: int, num_outputs: int = 1, quartic: bool = False):
        super().__init__()
        self.linear = nn.Parameter(torch.empty(num_outputs, event_size))
        self.quadratic = nn.Parameter(torch.empty(num_outputs, event_size, event_size))
        self.quartic = nn.Parameter(torch.empty(num_outputs, event_size)) if quartic else None
        self.reset()

    def reset(self) -> None:
        for parameter in self.parameters():
            init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, D) -> (batch, num_outputs)``."""
        value = x @ self.linear.T - torch.einsum("bi,mij,bj->bm", x, self.quadratic, x)
        return value if self.quartic is None else value - x**4 @ self.quartic.T


class EnergyOutput(nn.Linear):
    """The last layer: 0 at the start, and without a constant, which is c's."""

    def __init__(self, in_features: int, num_outputs: int):
        super().__init__(in_features, num_outputs, bias=False)


class NetworkEnergy(nn.Module):
    """A network over events that are brought to mean 0 and standard deviation 1 first."""

    def __init__(self, config: NCEDensityConfig):
        super().__init__()
        self.event_shape = tuple(config.event_shape)
        self.register_buffer("input_mean", torch.zeros(config.event_size))
        self.register_buffer("input_std", torch.ones(config.event_size))
        layers: list[nn.Module] = []
        act = ACT2FN[config.hidden_act]
        size = config.event_size
        if config.energy == "conv":
            channels, height, width = self.event_shape
            kernel = config.conv_kernel_size
            for out in config.conv_channels:
                layers += [nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2), act]
                channels, height, width = out, (height + 1) // 2, (width + 1) // 2
            layers.append(nn.Flatten())
            size = channels * height * width
        for out in config.hidden_sizes:
            layers += [nn.Linear(size, out), act]
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            size = out
        self.convolves = config.energy == "conv"
        self.layers = nn.Sequential(*layers)
        self.output = EnergyOutput(size, config.num_energies)

    def reset(self) -> None:
        init.zeros_(self.input_mean)
        init.ones_(self.input_std)

    @torch.no_grad()
    def fit_inputs(self, x: Tensor) -> None:
        """Mean and standard deviation of data ``(examples, D)``; dimensions that hardly change are not blown up."""
        std = x.std(0)
        self.input_mean.copy_(x.mean(0))
        self.input_std.copy_(std.clamp_min(0.1 * std.square().mean().sqrt() + 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, D) -> (batch, num_outputs)``."""
        x = (x - self.input_mean.to(x.dtype)) / self.input_std.to(x.dtype)
        x = x.to(self.output.weight.dtype)
        return self.output(self.layers(x.unflatten(1, self.event_shape) if self.convolves else x))


def init_energy_weights(module: nn.Module) -> bool:
    """Set the weights of a module of this file; whether it is one."""
    if isinstance(module, (PolynomialEnergy, NetworkEnergy)):
        module.reset()
    elif isinstance(module, EnergyOutput):
        init.zeros_(module.weight)
    elif isinstance(module, (nn.Linear, nn.Conv2d)):
        init.kaiming_normal_(module.weight, nonlinearity="linear")
        init.zeros_(module.bias)
    else:
        return False
    return True
