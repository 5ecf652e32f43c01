"""A log on three servers: their secrets, and the servers themselves where no container runs them.

Comes in: a folder. Goes out: certificates, passwords, login files, three processes. Knows nothing of runs or events;
imports no client of the log.
"""
