"""One file per data set: it holds ``SOURCES``, and `kdnotes.data` finds it in this folder."""
