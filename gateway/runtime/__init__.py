"""The event loop as long work sees it: turns, background greenlets, garbage collection."""
