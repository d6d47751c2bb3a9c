"""What stands in a kernel's place: asks the server of `kernels` for it, and ends with it.

Run by path with ``python -I -S``, so it loads next to nothing and nothing of this package. Without
an answer from the server it becomes an ordinary kernel.
"""

import json
import os
import select
import signal
import socket
import sys

SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    """Arguments: the server's address, the connection file, and the usual command."""
    address, connection_file, *usual = sys.argv[1:]
    parent = os.getppid()
    wish = {
        "connection_file": connection_file,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(wish).encode()], [0, 1, 2])
        kernel = int(connection.makefile().readline())
    except (OSError, ValueError):
        os.execv(usual[0], usual)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(kernel, number))
    while os.getppid() == parent:
        if select.select([connection], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            return  # the kernel has ended


if __name__ == "__main__":
    main()
