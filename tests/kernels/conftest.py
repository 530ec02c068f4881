"""Which tests of kernels can run here."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("triton") else ["test_triton.py"]
