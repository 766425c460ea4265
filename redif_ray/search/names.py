"""By which a search's folder is known, to those who need nothing else of a search."""

SUFFIX = "-search"  # after the name of the run
