from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from .configuration_capsule import CapsuleConfig
from .modeling_capsule import (
    CapsuleClassifierOutput,
    CapsuleForImageClassification,
    CapsuleForSequenceClassification,
    CapsuleLayer,
    CapsuleLayerOutput,
    CapsuleModel,
    CapsuleModelOutput,
    margin_loss,
)
from .routing import DensePredictions, EuclideanPredictions, route, routing_objective, squash

AutoConfig.register("capsule", CapsuleConfig, exist_ok=True)
AutoModel.register(CapsuleConfig, CapsuleModel, exist_ok=True)
AutoModelForImageClassification.register(CapsuleConfig, CapsuleForImageClassification, exist_ok=True)
AutoModelForSequenceClassification.register(CapsuleConfig, CapsuleForSequenceClassification, exist_ok=True)

__all__ = [
    "CapsuleClassifierOutput",
    "CapsuleConfig",
    "CapsuleForImageClassification",
    "CapsuleForSequenceClassification",
    "CapsuleLayer",
    "CapsuleLayerOutput",
    "CapsuleModel",
    "CapsuleModelOutput",
    "DensePredictions",
    "EuclideanPredictions",
    "margin_loss",
    "route",
    "routing_objective",
    "squash",
]
