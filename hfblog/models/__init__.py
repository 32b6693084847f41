from transformers import AutoImageProcessor

from . import capsule, conditional_ln_bert, flow
from .capsule import *  # noqa: F403
from .conditional_ln_bert import *  # noqa: F403
from .flow import *  # noqa: F403

# Here and not in its folder, which imports from no other: a saved folder takes the processor's file along by itself.
AutoImageProcessor.register(capsule.CapsuleConfig, image_processor_classes={"pil": flow.FlowImageProcessor}, exist_ok=True)

__all__ = [*capsule.__all__, *conditional_ln_bert.__all__, *flow.__all__]
