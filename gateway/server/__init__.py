"""Where gunicorn and the gateway meet. Rule: alone may import gunicorn."""
