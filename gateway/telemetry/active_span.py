"""The trace context that an upstream gets, when OpenTelemetry has a span for the request.

Rule: nothing of OpenTelemetry is imported here. Whoever put its instrumentation around the gateway has loaded it; its
propagators say which fields there are (W3C Trace Context by default).
"""

from __future__ import annotations

import sys

from gateway.http.messages import Request


def propagate(request: Request) -> None:
    """Have the active span, if there is one, stand in the request's headers as the upstream's parent."""
    trace, propagators = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.propagate")
    if trace is None or propagators is None:
        return
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return
    carrier: dict[str, str] = {}
    propagators.inject(carrier)
    # Those that are not written belong to the span before this one, such as its tracestate.
    ours = {name.lower().encode("latin-1") for name in (*propagators.get_global_textmap().fields, *carrier)}
    headers = [field for field in request.headers if field[0].lower() not in ours]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in carrier.items()]
    request.headers = request.fields = headers
    request.trace_id = format(context.trace_id, "032x")
