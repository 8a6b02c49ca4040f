"""What tests of shards from far away share beside fixtures."""

from collections.abc import Callable

import pytest

from esl_dist.data.shards import ShardReader, shard_name
from esl_dist.errors import UserError

SAMPLES = 7
FIRST, SECOND, LAST = (shard_name(number) for number in range(3))


def everything(reader: ShardReader) -> list[bytes]:
    return [reader.read(position, kind) for position in range(len(reader)) for kind in ("image", "label")]


def refusal(call: Callable[[], object], kind: type[UserError] = UserError) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert type(error.value) is kind
    return str(error.value)


def flipped(content: bytes) -> bytes:
    """Change a byte that is a header's, so that no sample is."""
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]
