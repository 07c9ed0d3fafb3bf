"""Executors: who runs the units of a plan, and where. All give the same numbers, to the bit, on one kind of device.

A job is cut into fixed units before anybody runs one; whoever runs a unit commits it to the journal itself. So a driver
that dies loses nothing, a worker that dies loses the unit it was at, and the same command goes on from there.
"""

from crosspatch.executors.execute import EXECUTORS, Crew, execute, pick
from crosspatch.executors.job import Job, Setup, run_units, share_of

__all__ = ["EXECUTORS", "Crew", "Job", "Setup", "execute", "pick", "run_units", "share_of"]
