"""A document of Traefik's file provider, and where requests go by it.

Rule: data only. Each expectation was taken from Traefik 3.7 itself; where that is at hand,
tests/integration/test_import_traefik.py asks it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.imported import Imported, Went

CONFIG = r"""
http:
  routers:
    ready: {rule: "Host(`ready.example`)", service: a}
    everything: {rule: "PathPrefix(`/`)", service: a, priority: 1}
    host: {rule: "Host(`one.example`)", service: b}
    two: {rule: "(Host(`two.example`) || Host(`three.example`)) && PathPrefix(`/x`)", service: c}
    posts: {rule: "Host(`one.example`) && Method(`POST`)", service: c}
    header: {rule: "Header(`X-Beta`, `1`) && PathPrefix(`/beta`)", service: b}
    query: {rule: "Query(`v`, `2`) && Path(`/versions`)", service: c}
    not: {rule: "Host(`not.example`) && PathPrefix(`/`) && !PathPrefix(`/private`)", service: d}
    sub: {rule: "HostRegexp(`^.+\\.sub\\.example$`)", service: d}
    strip: {rule: "PathPrefix(`/strip`)", service: b, middlewares: [strip]}
    stripadd: {rule: "PathPrefix(`/both`)", service: b, middlewares: [both]}
    add: {rule: "PathPrefix(`/add`)", service: c, middlewares: [add]}
    addexact: {rule: "Path(`/exactly`)", service: c, middlewares: [add]}
    replace: {rule: "PathPrefix(`/replace`)", service: d, middlewares: [replace]}
    rewritten: {rule: "PathPrefix(`/re`)", service: d, middlewares: [rewritten]}
    pattern: {rule: "PathRegexp(`^/items/[0-9]+$`)", service: b}
    anywhere: {rule: "PathRegexp(`\\.(gif|ico)`)", service: c}
    short: {rule: "PathPrefix(`/order`)", service: b}
    long: {rule: "PathPrefix(`/order/special`)", service: c, priority: 3}
    part: {rule: "PathPrefix(`/part`)", service: b, middlewares: [part]}
    guarded: {rule: "PathPrefix(`/guarded`)", service: b, middlewares: [login]}
    upstreamhost: {rule: "PathPrefix(`/theirs`)", service: own}
  middlewares:
    strip: {stripPrefix: {prefixes: ["/strip"]}}
    both: {chain: {middlewares: [stripboth, add]}}
    stripboth: {stripPrefix: {prefixes: ["/both"]}}
    add: {addPrefix: {prefix: /added}}
    replace: {replacePath: {path: /fixed}}
    rewritten: {replacePathRegex: {regex: "^/re/([a-z]+)/(.*)", replacement: "/$2/$1"}}
    part: {stripPrefix: {prefixes: ["/part/one", "/part"]}}
    login: {basicAuth: {users: ["u:$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/"]}}
  services:
    a: {loadBalancer: {servers: [{url: "http://a.internal"}]}}
    b: {loadBalancer: {servers: [{url: "http://b.internal"}]}}
    c: {loadBalancer: {servers: [{url: "http://c.internal"}]}}
    d: {loadBalancer: {servers: [{url: "http://d.internal"}]}}
    own: {loadBalancer: {passHostHeader: false, servers: [{url: "http://d.internal"}]}}
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, the service that it reaches (empty: none), the target that it has there."""

    target: str
    to: str
    sent: str = ""
    host: str = "any.example"
    method: str = "GET"
    headers: Sequence[tuple[str, str]] = ()

    @property
    def id(self) -> str:
        return f"{self.method} {self.host}{self.target} {len(self.headers)}"

    def of(self, imported: Imported) -> Went:
        headers = [(name.encode(), value.encode()) for name, value in self.headers]
        went = imported.ask(self.target, self.host, self.method, headers)
        return Went("") if went.to == "closed" else went


BETA = (("X-Beta", "1"),)

REQUESTS = [
    Ask("/", "a"),
    Ask("/x/y?z", "a"),
    Ask("/", "b", host="one.example"),
    Ask("/", "b", host="ONE.example:8080"),
    Ask("/", "c", host="one.example", method="POST"),
    Ask("/x", "c", host="two.example"),
    Ask("/x/y", "c", host="three.example"),
    Ask("/y", "a", host="three.example"),
    Ask("/beta", "b", headers=BETA),
    Ask("/beta", "a"),
    Ask("/versions?v=2", "c"),
    Ask("/versions?w=1&v=2", "c"),
    Ask("/versions?v=3", "a"),
    Ask("/x", "d", host="not.example"),
    Ask("/private", "a", host="not.example"),
    Ask("/private/x", "a", host="not.example"),
    Ask("/x", "d", host="a.b.sub.example"),
    Ask("/x", "a", host="sub.example"),
    Ask("/strip/x?y", "b", "/x?y"),
    Ask("/strip", "b", "/"),
    Ask("/strip/", "b", "/"),
    Ask("/strip/a%2Fb", "b", "/a%2Fb"),
    Ask("/both/x", "b", "/added/x"),
    Ask("/add/x", "c", "/added/add/x"),
    Ask("/exactly", "c", "/added/exactly"),
    Ask("/replace/anything?q=1", "d", "/fixed?q=1"),
    Ask("/re/abc/d/e", "d", "/d/e/abc"),
    Ask("/re/1/d/e", "d", "/re/1/d/e"),
    Ask("/items/12", "b"),
    Ask("/items/12/x", "a"),
    Ask("/a/b.gif/c", "c"),
    Ask("/order/x", "b"),
    Ask("/order/special/x", "b"),
    Ask("/part/one/x", "b", "/x"),
    Ask("/part/two/x", "b", "/two/x"),
    Ask("/guarded/x", ""),
    Ask("/theirs/x", "d"),
]

# Traefik's prefixes are of bytes, ours of whole segments.
DIFFERENT = [
    Ask("/stripped", "a"),
    Ask("/xyz", "a", host="two.example"),
]
