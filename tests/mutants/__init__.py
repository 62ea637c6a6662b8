"""The driver `fake`, broken in one way each: what the conformance suite has to notice.

A mutant is a function that changes `msgbus.drivers.fake` in its own process; its docstring is the fault. `MUTANTS` says
which checks tell of it; all the others pass, or are not judged as they build on these.
"""
