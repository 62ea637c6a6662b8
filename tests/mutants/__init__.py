"""The driver `fake`, broken in one way each: what the conformance suite has to notice.

A mutant is a function that changes `msgbus.drivers.fake` in a process of its own; its docstring is the fault. Said of
each are the checks that fail with it. All others pass, or are not judged, as they build on these.
"""
