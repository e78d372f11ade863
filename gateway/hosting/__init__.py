"""gunicorn's master and the host: settings, sockets, the run directory, logs and output."""
