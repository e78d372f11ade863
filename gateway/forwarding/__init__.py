"""One request to its upstream: attempts, retries, hedging, copies, and what routes do instead."""
