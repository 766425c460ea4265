"""By which the folders of jobs of trials are known, to those who need nothing else of them."""

SEARCH, SWEEP = "-search", "-sweep"  # after the name of the run
TRIALS = "trials.jsonl"  # a line each trial that is over
