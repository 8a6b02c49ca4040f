"""A program that notes what its ranks and their workers read from shards: `note_reads.py FILE PROGRAM words…`.

Each rank leaves one JSON line a read: the folder's name, the sample's position, and what of it was read.
"""

import json
import os
import runpy
import sys

from esl_dist.data.shards import ShardReader

# Appended a line at a time, whole: its workers inherit the file.
file = os.open(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.argv = sys.argv[2:]
read = ShardReader.read


def noting(reader: ShardReader, position: int, kind: str) -> bytes:
    os.write(file, (json.dumps([reader.folder.name, position, kind]) + "\n").encode())
    return read(reader, position, kind)


ShardReader.read = noting
runpy.run_path(sys.argv[0], run_name="__main__")
