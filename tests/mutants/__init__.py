"""What is broken on purpose, and has to be noticed.

Most modules break the driver `fake`, which the conformance suite has to notice. A mutant there is a function that
changes `msgbus.drivers.fake` in a process of its own; its docstring is the fault. Said of each are the checks that fail
with it. All others pass, or are skipped because they build on these. `core` is about the core, and its unit tests.
"""
