"""acs-kit: choose the best of several LVLM boxes by the LVLM's own attention (arXiv 2606.01612)."""

__version__ = "0.1.0"
