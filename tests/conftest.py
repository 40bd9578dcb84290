"""For all tests."""

import os

# One worker a core runs the tests: threads of its own would wait for a core by spinning on it.
# Read once, when a library with threads is loaded.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
