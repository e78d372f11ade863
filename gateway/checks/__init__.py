"""Active health checks: one worker probes endpoints for all of them."""
