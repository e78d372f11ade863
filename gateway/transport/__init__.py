"""How bytes reach an upstream: pools, connections and answers. Alone imports urllib3."""

from gateway.transport.pool import EndpointPool
from gateway.transport.transport import Transport

__all__ = ["EndpointPool", "Transport"]
