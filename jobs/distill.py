r"""`redif distill` as a Ray job.

ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
    python jobs/distill.py configs/fashion_mnist.yaml run.root=/shared/runs
"""

import sys

from redif_ray.cli import main

if __name__ == "__main__":
    sys.argv = ["redif", "distill", *sys.argv[1:], "ray.address=auto"]
    main()
