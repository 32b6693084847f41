from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_flow import FlowConfig
from .configuration_invertible_resnet import InvertibleResNetConfig
from .configuration_nice_flow import NiceFlowConfig
from .image_processing_flow import FlowImageProcessor
from .modeling_flow import FlowOutput, FlowPreTrainedModel
from .modeling_invertible_resnet import (
    InverseInfo,
    InvertibleResNetForImageClassification,
    InvertibleResNetModel,
    LogDetInfo,
)
from .modeling_nice_flow import NiceFlowModel
from .pipeline_flow import UnconditionalImageGenerationPipeline

AutoConfig.register("nice_flow", NiceFlowConfig, exist_ok=True)
AutoModel.register(NiceFlowConfig, NiceFlowModel, exist_ok=True)
AutoImageProcessor.register(NiceFlowConfig, image_processor_classes={"pil": FlowImageProcessor}, exist_ok=True)

AutoConfig.register("invertible_resnet", InvertibleResNetConfig, exist_ok=True)
AutoModel.register(InvertibleResNetConfig, InvertibleResNetModel, exist_ok=True)
AutoModelForImageClassification.register(InvertibleResNetConfig, InvertibleResNetForImageClassification, exist_ok=True)
AutoImageProcessor.register(InvertibleResNetConfig, image_processor_classes={"pil": FlowImageProcessor}, exist_ok=True)

__all__ = [
    "FlowConfig",
    "FlowImageProcessor",
    "FlowOutput",
    "FlowPreTrainedModel",
    "InverseInfo",
    "InvertibleResNetConfig",
    "InvertibleResNetForImageClassification",
    "InvertibleResNetModel",
    "LogDetInfo",
    "NiceFlowConfig",
    "NiceFlowModel",
    "UnconditionalImageGenerationPipeline",
]
