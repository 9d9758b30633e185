"""redis-py's Lock. Executes the command in each line of stdin, and answers with one line.

usage: redis_lock.py HOST PORT KEY [TIMEOUT]
"""

import sys

try:
    from redis import Redis
    from redis.exceptions import LockError
except ImportError:
    # The exit code for a missing program.
    sys.exit(127)

host, port, key, *timeout = sys.argv[1:]
# Without a timeout the key never expires.
lock = Redis(host, int(port)).lock(key, timeout=float(timeout[0]) if timeout else None, sleep=0.01)
commands = {
    "acquire": lock.acquire,
    "try": lambda: lock.acquire(blocking=False),
    "release": lock.release,
    "extend": lambda: lock.extend(60),
    "owned": lock.owned,
    "token": lambda: lock.local.token.decode(),
}
for line in sys.stdin:
    try:
        answer = commands[line.strip()]()
    except LockError as error:
        answer = type(error).__name__
    print(answer, flush=True)
