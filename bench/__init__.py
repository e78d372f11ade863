"""The benchmark: the gateway and its peers, in turn in one run on pinned cores.

Rule: a figure counts only beside the others of its run. What is measured is the CPU time
of a gateway's whole process tree divided by the requests that were answered rightly; a
wrong answer fails the run. Everything stays on loopback and ends with the harness.
"""
