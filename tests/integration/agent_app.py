"""The gateway with an APM agent around it, as its documentation has it; gunicorn serves this in `test_agents`.

AGENT says which. What the agent would send to its collector is written to NOTED, one JSON object a line.
"""

from __future__ import annotations

import json
import os
from typing import Any

AGENT = os.environ["AGENT"]


def note(name: str, **what: Any) -> None:
    with open(os.environ["NOTED"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, **what}) + "\n")


def newrelic() -> None:
    """newrelic-admin has patched Flask and gunicorn; in developer mode nothing is sent."""
    from newrelic.core.agent import Agent

    record = Agent.record_transaction

    def noted(self: Any, app_name: str, data: Any) -> Any:
        (status,) = [one.value for one in data.agent_attributes if one.name == "http.statusCode"] or [0]
        note(data.request_uri or "", status=status, errors=[error.message for error in data.errors])
        return record(self, app_name, data)

    Agent.record_transaction = noted


def ddtrace() -> None:
    """ddtrace-run has patched Flask."""
    from ddtrace.trace import TraceFilter, tracer

    class Noted(TraceFilter):  # type: ignore[misc, unused-ignore]
        def process_trace(self, trace: Any) -> Any:
            for span in trace:
                if span.name == "flask.request":
                    # A 5xx is an error of the span's, too, without a message.
                    errors = [one.get_tag("error.message") for one in trace if one.get_tag("error.message")]
                    status = int(span.get_tag("http.status_code") or 0)
                    note(span.get_tag("http.url") or "", status=status, errors=errors)
            return trace

    tracer.configure(trace_processors=[Noted()])


def elastic(app: Any) -> None:
    import elasticapm
    from elasticapm.contrib.flask import ElasticAPM
    from elasticapm.transport.base import Transport

    class Noted(Transport):  # type: ignore[misc, unused-ignore]
        def start_thread(self, pid: int | None = None) -> None:
            pass

        def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
            if event_type == "transaction":
                context = data["context"]
                url = context["request"]["url"]["full"]
                body = context["request"].get("body")
                note(url, status=context["response"]["status_code"], errors=[], body=body)
            elif event_type == "error":
                note("error", status=0, errors=[data["exception"]["message"]])

        def flush(self) -> None:
            pass

        def close(self) -> None:
            pass

    class Client(elasticapm.Client):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._transport = Noted(self)

    ElasticAPM(
        app,
        client_cls=Client,
        service_name="gateway",
        capture_body="all",
        central_config=False,
        cloud_provider="none",
        metrics_interval="0s",
        breakdown_metrics=False,
    )


def opentelemetry(app: Any) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class Noted(SpanExporter):
        def export(self, spans: Any) -> Any:
            for span in spans:
                attributes = span.attributes
                note(
                    attributes.get("http.target", attributes.get("http.url", "")),
                    status=attributes.get("http.status_code", 0),
                    # A 5xx is an error of the span's, too, without a description.
                    errors=[text for text in (*(one.name for one in span.events), span.status.description) if text],
                    ids=[f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"],
                    parent=f"{span.parent.span_id:016x}" if span.parent else "",
                )
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Noted()))
    trace.set_tracer_provider(provider)
    if AGENT == "opentelemetry-wsgi":
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

        app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app)
    else:
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        FlaskInstrumentor().instrument_app(app)


if AGENT == "newrelic":
    newrelic()
if AGENT == "ddtrace":
    ddtrace()

from gateway import create_app  # noqa: E402 - behind the agent, as the agents patch before

app = create_app()

if AGENT == "elastic":
    elastic(app)
if AGENT.startswith("opentelemetry"):
    opentelemetry(app)
