"""The probes on one's own networks: what did a student trained elsewhere take from its teacher?"""

from kdnotes.audit.measuring import Measured, cast, images, measure

__all__ = ["Measured", "cast", "images", "measure"]
