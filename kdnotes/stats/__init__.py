"""Intervals, verdicts, and what a set of claims comes to."""

from kdnotes.stats.estimates import *  # noqa: F403
