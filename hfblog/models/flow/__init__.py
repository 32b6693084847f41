from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .configuration_flow import FlowConfig
from .configuration_nice_flow import NiceFlowConfig
from .image_processing_flow import FlowImageProcessor
from .modeling_flow import FlowOutput, FlowPreTrainedModel
from .modeling_nice_flow import NiceFlowModel
from .pipeline_flow import UnconditionalImageGenerationPipeline

AutoConfig.register("nice_flow", NiceFlowConfig, exist_ok=True)
AutoModel.register(NiceFlowConfig, NiceFlowModel, exist_ok=True)
AutoImageProcessor.register(NiceFlowConfig, image_processor_classes={"pil": FlowImageProcessor}, exist_ok=True)

__all__ = [
    "FlowConfig",
    "FlowImageProcessor",
    "FlowOutput",
    "FlowPreTrainedModel",
    "NiceFlowConfig",
    "NiceFlowModel",
    "UnconditionalImageGenerationPipeline",
]
