r"""`redif search` as a Ray job.

ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
    python jobs/search_schedule.py configs/fashion_mnist.yaml run.root=/shared/runs search.steps=[2,4]

Add `--adaptive` or `--resume` as on the command line.
"""

import sys

from redif_ray.cli import main

if __name__ == "__main__":
    sys.argv = ["redif", "search", *sys.argv[1:], "ray.address=auto"]
    main()
