"""Side by side on one machine: oneport and what people would otherwise run.

`./bench` calls this with `python3 -m compare`. It needs Python 3.11 and its standard library.

A byte of reading: `__main__` → `rounds` (which stack does which work, in which order) → `stacks`
(how each is started) and `rows` (what is measured) → `table` (what is shown).
"""

import os
from pathlib import Path

# Before anybody imports `ssl`, which reads it once. Programs that are servers do not get it.
os.environ["OPENSSL_CONF"] = str(Path(__file__).with_name("openssl.cnf"))
