"""The names of folders and files of searches and sweeps, for modules that need nothing else of them."""

SEARCH, SWEEP = "-search", "-sweep"  # suffixes of the folder, after run.name
TRIALS = "trials.jsonl"  # a line for each finished trial
TESTS = "repeats.jsonl"  # a line for each finished run that tests the best settings of a sweep
