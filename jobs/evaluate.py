r"""`redif evaluate` as a Ray job.

ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
    python jobs/evaluate.py /shared/runs/first evaluation.held_out=10000
"""

import sys

from redif_ray.cli import main

if __name__ == "__main__":
    sys.argv = ["redif", "evaluate", *sys.argv[1:], "ray.address=auto"]
    main()
