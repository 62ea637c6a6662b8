"""Tests with real message systems, several processes, and faults."""
