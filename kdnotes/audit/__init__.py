"""The probes on one's own networks: what did a student trained elsewhere take from its teacher?"""

from kdnotes.audit.measuring import Audit, Measured, cast, images, measure, run
from kdnotes.audit.writing import save, summary

__all__ = ["Audit", "Measured", "cast", "images", "measure", "run", "save", "summary"]
