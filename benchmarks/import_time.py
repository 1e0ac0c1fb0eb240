"""How long `import salus` takes, beside numpy, which it cannot do without: medians of interleaved fresh interpreters.

python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

ROUNDS = 9
SCRIPT = "import time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"


def seconds(module: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(module=module)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    rounds = [(seconds("numpy"), seconds("salus")) for _ in range(ROUNDS)]
    numpy_s, salus_s = (median(column) for column in zip(*rounds, strict=True))
    print(f"import numpy {numpy_s:.3f} s, import salus {salus_s:.3f} s (numpy included), median of {ROUNDS}")
