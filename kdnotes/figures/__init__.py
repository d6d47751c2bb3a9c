"""The book's figures: one style, one palette."""

from kdnotes.figures.plots import *  # noqa: F403
