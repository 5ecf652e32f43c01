"""Judging a TriMul kernel that someone else wrote, and our own kernels.

    ports.py    the chamber in which a kernel file runs      judge.py    verify, time, audit: a verdict
    guest.py    the inside of it: load, call, time           bench.py    what the role kernel-bench performs
    timing.py   the protocols strict and gpumode             triton_*.py our own kernels, for a GPU
    checking.py is an output right? on the processor         torch_maths.py  the same on a GPU

In: the source of a kernel file and its configuration. Out: microseconds or why not. Imports resia.events and
resia.domains; torch inside the chamber and where a GPU is judged on, triton only in the files that are kernels. How a
process is locked in is for whoever implements the chamber.
"""
