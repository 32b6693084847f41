from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from .configuration_bottleneck import BottleneckConfig
from .configuration_vae import VAEConfig
from .configuration_vib import VIBConfig
from .modeling_vae import VAEModel, VAEOutput
from .modeling_vib import InformationPlane, VIBForImageClassification, VIBForSequenceClassification, VIBOutput
from .variational_bottleneck import (
    BottleneckOutput,
    GaussianPosterior,
    VariationalBottleneck,
    gaussian_rate,
    interpolate_latents,
)

AutoConfig.register("vib", VIBConfig, exist_ok=True)
AutoModelForImageClassification.register(VIBConfig, VIBForImageClassification, exist_ok=True)
AutoModelForSequenceClassification.register(VIBConfig, VIBForSequenceClassification, exist_ok=True)

AutoConfig.register("vae", VAEConfig, exist_ok=True)
AutoModel.register(VAEConfig, VAEModel, exist_ok=True)

__all__ = [
    "BottleneckConfig",
    "BottleneckOutput",
    "GaussianPosterior",
    "InformationPlane",
    "VAEConfig",
    "VAEModel",
    "VAEOutput",
    "VIBConfig",
    "VIBForImageClassification",
    "VIBForSequenceClassification",
    "VIBOutput",
    "VariationalBottleneck",
    "gaussian_rate",
    "interpolate_latents",
]
