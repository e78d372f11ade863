"""Upstreams while the gateway runs: snapshots, the state that outlives them, saved endpoints."""
