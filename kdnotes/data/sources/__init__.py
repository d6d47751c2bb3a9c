"""One file per data set: it holds ``SOURCES``, and `registry` finds it by scanning this folder."""
