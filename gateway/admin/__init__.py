"""What the gateway tells of itself: status of all workers, metrics, the effective configuration.

Rule: who may ask is decided in `door`, in one place; nothing here is reached from a data
listener but with `bind: inline`, and nothing here lies on a request's path.
"""

from gateway.admin.door import Admin

__all__ = ["Admin"]
