"""A small double of the host, Sys-Scan-Graph's agent, for the suite: its interfaces and its traps, in our own code.

It is no model of what the host finds; it is what the host does to a provider and to nodes: what it throws away, what it
swallows, what it loses. `scripted` is no part of it: a backend that answers by rule and remembers what it was asked.
"""
