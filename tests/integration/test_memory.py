"""Freed memory goes back to the kernel."""

import subprocess
import sys

SCRIPT = """
import psutil
from pipeline.runtime.allocator import return_freed_memory, tune_allocator

def resident_mb():
    return psutil.Process().memory_info().rss / 1e6

tune_allocator()
blocks = [bytes([i]) * 10**6 for i in range(200)]
last = b"x" * 10**6  # above the others, so that they are freed below memory in use
used = resident_mb()
del blocks
kept = resident_mb()
return_freed_memory()
print(used - kept, used - resident_mb())
"""


def test_freed_memory_is_kept_until_it_is_returned():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(float, ended.stdout.split())
    assert before < 50
    assert after > 150
