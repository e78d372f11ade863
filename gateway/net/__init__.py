"""Sockets under gevent, addresses, and bytes that go from one socket to another."""
