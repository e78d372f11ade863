"""What the gateway tells about the traffic it carries; so far the access log."""
