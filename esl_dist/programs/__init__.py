"""The programs, one module each: what is refused before torch is imported, then one function of a part below.

`launch/`, `shards/` and the command `esl-dist` start them.
"""
