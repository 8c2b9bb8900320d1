"""Side by side on one machine: oneport and what people would otherwise run.

`./bench` calls this with `python3 -m compare`. It needs Python 3.11 and its standard library.

A byte of reading: `__main__` → `rounds` (which stack does which work, in which order) → `stacks`
(how each is started) and `rows` (what is measured) → `table` (what is shown).
"""
