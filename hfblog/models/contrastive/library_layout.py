"""In the making."""


class LibraryLayout:
    """Placeholder until the solver is written."""


__all__ = ["LibraryLayout"]
