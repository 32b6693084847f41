from transformers import AutoImageProcessor

from . import bottleneck, capsule, conditional_ln_bert, contrastive, flow, term_miner
from .bottleneck import *  # noqa: F403
from .capsule import *  # noqa: F403
from .conditional_ln_bert import *  # noqa: F403
from .contrastive import *  # noqa: F403
from .flow import *  # noqa: F403
from .term_miner import *  # noqa: F403

# Here and not in their folders, which import from no other: a saved folder takes the processor's file along by itself.
for config_class in (bottleneck.VAEConfig, bottleneck.VIBConfig, capsule.CapsuleConfig, contrastive.NCEDensityConfig):
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": flow.FlowImageProcessor}, exist_ok=True)

families = (bottleneck, capsule, conditional_ln_bert, contrastive, flow, term_miner)
__all__ = [name for family in families for name in family.__all__]
