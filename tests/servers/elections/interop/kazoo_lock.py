"""kazoo's Lock. Executes the command in each line of stdin, and answers with one line.

usage: kazoo_lock.py ADDRESS PATH IDENTIFIER
"""

import sys

try:
    from kazoo.client import KazooClient
except ImportError:
    # The exit code for a missing program.
    sys.exit(127)

address, path, identifier = sys.argv[1:]
client = KazooClient(hosts=address, timeout=3.0)
client.start()
lock = client.Lock(path, identifier, extra_lock_patterns=["-lock-"])
commands = {
    "acquire": lock.acquire,
    "try": lambda: lock.acquire(blocking=False),
    "release": lock.release,
    "contenders": lambda: " ".join(lock.contenders()),
}
for line in sys.stdin:
    print(commands[line.strip()](), flush=True)
