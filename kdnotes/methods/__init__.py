"""Ways of teaching: what a student is trained on besides the labels."""

from kdnotes.methods import objectives

__all__ = ["objectives"]
