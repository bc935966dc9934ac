"""One thread for each of the processes that share the tests: more of them would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
