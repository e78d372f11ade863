"""Bodies that are held so that a slow client keeps no upstream busy.

Rule: nothing is held while client and upstream keep pace with each other. What is held is counted (`memory`)
and bounded: beyond the bounds a body streams, and that is counted, too.
"""
