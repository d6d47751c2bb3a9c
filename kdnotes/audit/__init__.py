"""The probes on one's own networks: what did a student trained elsewhere take from its teacher?"""

from kdnotes.audit.measuring import Audit, run
from kdnotes.audit.writing import save, summary

__all__ = ["Audit", "run", "save", "summary"]
