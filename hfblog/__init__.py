"""Models after eight articles of Su Jianlin's "Scientific Spaces", for the Hugging Face libraries.

Importing the package registers every model with transformers' Auto classes and every pipeline with `pipeline`.
"""

from . import models, pipelines
from .models import *  # noqa: F403

__version__ = "0.1.0"
__all__ = ["__version__", *models.__all__]
