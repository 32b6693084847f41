from . import conditional_ln_bert, flow
from .conditional_ln_bert import *  # noqa: F403
from .flow import *  # noqa: F403

__all__ = [*conditional_ln_bert.__all__, *flow.__all__]
