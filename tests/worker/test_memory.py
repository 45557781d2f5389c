import subprocess
import sys

PROGRAM = """
import ctypes, gc
from stylequeue_worker import memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

memory.keep_freed_memory()
pieces = [bytearray(b"1" * 2**22) for _ in range(50)]
# Held above them, so that the top of the heap cannot shrink by itself.
last = bytearray(b"1" * 2**22)
del pieces
gc.collect()
kept = resident()
memory.give_back_freed_memory()
print(kept, resident())
"""


def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 50 * 2**22
    assert left < kept - 45 * 2**22
