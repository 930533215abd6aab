"""What holds for all tests: side by side, each process takes one thread, since two of them share two cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
