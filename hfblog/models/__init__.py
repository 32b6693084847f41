from . import flow
from .flow import *  # noqa: F403

__all__ = [*flow.__all__]
