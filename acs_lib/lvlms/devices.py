"""Where LVLMs and regressors compute."""

import torch


def default_device() -> str:
    """On a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
