"""The `gateway` command: what it prints about a configuration, and how."""
