"""Tests: unit (no sockets), integration (real servers on loopback), conformance (raw bytes)."""
