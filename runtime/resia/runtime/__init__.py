"""The shell: worker loop, bus, blobs, engines, sandbox, supervisor, configuration and command line.

In: everything. Out: processes. Nothing imports it.
"""
