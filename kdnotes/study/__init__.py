"""Which networks a chapter compares, as data: worlds, arms, casts, presets."""

from kdnotes.study.chapters import HINT_DEPTHS, UNSEEN_GROUP, Study, chapter, known_chapters

__all__ = ["HINT_DEPTHS", "UNSEEN_GROUP", "Study", "chapter", "known_chapters"]
