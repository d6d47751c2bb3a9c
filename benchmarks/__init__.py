"""The same work, done by this package and by others, timed side by side in one run."""
