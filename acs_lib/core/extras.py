"""Packages that only some commands need: the extras of pyproject.toml."""

import importlib
from types import ModuleType


def load_extra(module: str, extra: str) -> ModuleType:
    """The module, loaded; ImportError says which extra of acs-kit brings it where its package is not installed."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(
            f'this needs {package}, which is not installed here: pip install "acs-kit[{extra}]"', name=package
        ) from error
