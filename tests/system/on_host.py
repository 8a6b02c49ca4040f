"""A rank on a machine of its own: `on_host.py NETWORK MASTER PROGRAM words…`.

Rank 1 runs in the network namespace NETWORK-1, under that name, with that machine's /etc/hosts; where there is no such
namespace, it never starts.
"""

import ctypes
import os
import runpy
import socket
import sys
from pathlib import Path

NEW_MOUNTS, NEW_NAME, NEW_NETWORK = 0x00020000, 0x04000000, 0x40000000
BIND, PRIVATE = 4096, 16384 | 1 << 18

network, master, program = sys.argv[1:4]
sys.argv = sys.argv[3:]
name = f"{network}-{os.environ['RANK']}"
libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> None:
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), function)


try:
    file = os.open(f"/run/netns/{name}", os.O_RDONLY)
except FileNotFoundError:
    sys.exit(0)
call("setns", file, NEW_NETWORK)
os.close(file)
call("unshare", NEW_MOUNTS | NEW_NAME)
call("mount", None, b"/", None, PRIVATE, None)
if (hosts := Path(f"/etc/netns/{name}/hosts")).exists():
    call("mount", os.fsencode(hosts), b"/etc/hosts", None, BIND, None)
socket.sethostname(name)
os.environ.update(MASTER_ADDR=master, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
runpy.run_path(program, run_name="__main__")
