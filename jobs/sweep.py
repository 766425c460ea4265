r"""`redif sweep` as a Ray job.

ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
    python jobs/sweep.py configs/fashion_mnist.yaml run.root=/shared/runs \
    "sweep.space.learner.lr=loguniform(1e-6, 1e-4)"
"""

import sys

from redif_ray.cli import main

if __name__ == "__main__":
    sys.argv = ["redif", "sweep", *sys.argv[1:], "ray.address=auto"]
    main()
