"""The configurations that the conformance tests run against.

`$main` and the like are replaced by the harness. A route tells which it was by the Host that it gives to the
upstream, where that matters. Limits are short only where a test is about them. `overload` is off: it measures how
busy the machine is.
"""

from __future__ import annotations

import tempfile

STANDARD = """
version: 1
server: {name: gw, overload: 0}
upstreams:
  main: {endpoints: ["$main"]}
  refused: {endpoints: ["$refused"]}
  silent: {endpoints: ["$silent"], timeouts: {connect: 400ms}, retry: {attempts: 1}}
  quick: {endpoints: ["$main"], timeouts: {response: 400ms, idle: 1s}}
  deadline: {endpoints: ["$main"], timeouts: {total: 500ms}}
  brief: {endpoints: ["$main"], timeouts: {tunnel: 700ms}}
  narrow: {endpoints: ["$main"], pool: {max_connections: 1, queue_timeout: 500ms}}
  wide: {endpoints: ["$main"], limits: {header: 0, headers: 0}}
  named: {endpoints: ["$main"], host: upstream}
  literal: {endpoints: ["$main"], host: inside.test}
  based: {endpoints: ["$main/a%2Fb/?sta=tic"]}
routes:
  # everything that no other route takes, except what begins with /unrouted
  - {name: main, match: {regex: '/.*', not: {regex: '/unrouted.*'}}, priority: -1, upstream: main}
  - {name: refused, match: {prefix: /refused}, upstream: refused}
  - {name: silent, match: {prefix: /silent}, upstream: silent}
  - {name: quick, match: {prefix: /quick}, upstream: quick}
  - {name: patient, match: {prefix: /patient}, upstream: quick, timeouts: {response: 0}}
  - {name: deadline, match: {prefix: /deadline}, upstream: deadline}
  - {name: brief, match: {prefix: /brief}, upstream: brief}
  - {name: exec, match: {prefix: /exec}, upstream: main, upgrade: [websocket, SPDY/3.1, tcp]}
  - {name: narrow, match: {prefix: /narrow}, upstream: narrow}
  - {name: wide, match: {prefix: /wide}, upstream: wide}
  - {name: named, match: {prefix: /named}, upstream: named}
  - {name: literal, match: {prefix: /literal}, upstream: literal}
  - {name: based, match: {prefix: /based}, upstream: based, strip_prefix: true}
  - {name: strip, match: {prefix: /strip}, upstream: main, strip_prefix: true}
"""

TRUSTED = """
version: 1
server: {name: gw, overload: 0, trusted_proxies: [loopback, 10.0.0.0/8], forwarded: false}
upstreams:
  main: {endpoints: ["$main"]}
routes:
  - {name: main, match: {prefix: /}, upstream: main}
"""

ROUTING = """
version: 1
server: {name: gw, overload: 0}
upstreams:
  main: {endpoints: ["$main"]}
routes:
  # paths
  - {name: one, match: {host: path.test, path: /one}, upstream: main, host: one}
  - {name: two, match: {host: path.test, path: /two}, upstream: main, host: two}
  - {name: with, match: {host: path.test, prefix: /with}, upstream: main, host: with}
  - {name: v2, match: {host: path.test, prefix: /v2}, upstream: main, host: v2}
  - {name: v2-deep, match: {host: path.test, prefix: /v2/deep/}, upstream: main, host: v2-deep}
  - {name: v2-exact, match: {host: path.test, path: /v2/exact}, upstream: main, host: v2-exact}
  - {name: number, match: {host: path.test, regex: '/number/[0-9]+'}, upstream: main, host: number}
  - {name: admin, match: {host: path.test, prefix: /admin}, upstream: main, host: admin}
  # headers, query, methods
  - {name: version-two, match: {host: match.test, headers: {Version: two}}, upstream: main, host: version-two}
  - {name: version-two-orange, match: {host: match.test, headers: {version: two, color: orange}}, upstream: main, host: version-two-orange}
  - name: colors
    match: [{host: match.test, headers: {color: blue}}, {host: match.test, headers: {color: green}}]
    upstream: main
    host: colors
  - {name: version-four, match: {host: match.test, headers: {version: four}}, upstream: main, host: version-four}
  - {name: path5, match: {host: match.test, prefix: /path5}, upstream: main, host: path5}
  - {name: path5-four, match: {host: match.test, prefix: /path5, headers: {version: four}}, upstream: main, host: path5-four}
  - {name: hydra, match: {host: match.test, query: {animal: hydra}}, upstream: main, host: hydra}
  - {name: whale, match: {host: match.test, query: {animal: "blue whale", size: "1.10"}}, upstream: main, host: whale}
  - {name: get, match: {host: method.test, prefix: /, methods: [GET]}, upstream: main, host: get}
  - {name: post, match: {host: method.test, prefix: /, methods: [POST]}, upstream: main, host: post}
  - {name: any-below, match: {host: method.test, prefix: /any}, upstream: main, host: any-below}
  - {name: get-below, match: {host: method.test, prefix: /any, methods: [GET]}, upstream: main, host: get-below}
  # hosts
  - {name: host-exact, match: {host: very.specific.com, prefix: /}, upstream: main, host: host-exact}
  - {name: host-wild, match: {host: "*.specific.com", prefix: /}, upstream: main, host: host-wild}
  - {name: host-wild-longer, match: {host: "*.more.specific.com", prefix: /}, upstream: main, host: host-wild-longer}
  - {name: foo, match: {host: foo.com, prefix: /}, upstream: main, host: foo}
  - {name: ip6, match: {host: "[::1]", prefix: /}, upstream: main, host: ip6}
  - {name: across-com, match: [{host: across.com, prefix: /}, {host: across.net, prefix: /}], upstream: main, host: across-first}
  - {name: across-two, match: [{host: across.com, prefix: /v2}], upstream: main, host: across-second}
  - {name: only-here, match: {host: narrow.specific.com, path: /only}, upstream: main, host: only-here}
  - {name: anywhere, match: {path: /anywhere}, upstream: main, host: anywhere}
  - {name: low, match: {host: priority.test, path: /x}, upstream: main, host: low}
  - {name: high, match: {host: priority.test, prefix: /}, priority: 1, upstream: main, host: high}
  # what is forwarded
  - {name: raw, match: {host: raw.test, prefix: /}, upstream: main}
  - {name: strip, match: {host: rewrite.test, prefix: /prefix}, upstream: main, strip_prefix: true}
  - {name: strip-deep, match: {host: rewrite.test, prefix: /a/b}, upstream: main, strip_prefix: true}
  - {name: replace, match: {host: rewrite.test, prefix: /old}, upstream: main, rewrite: {prefix: /new}}
  - {name: replace-root, match: {host: rewrite.test, prefix: /gone}, upstream: main, rewrite: {prefix: /}}
  - {name: full, match: {host: rewrite.test, prefix: /full}, upstream: main, rewrite: {path: /one}}
  - {name: regex, match: {host: rewrite.test, prefix: /u}, upstream: main, rewrite: {regex: '^/u/(\\d+)', to: '/users/\\1'}}
"""

RETRIES = """
version: 1
server: {name: gw, overload: 0}
upstreams:
  main: {endpoints: ["$main"]}
  half: {endpoints: ["$refused", "$main"], retry: {budget: 100%}}
  half-named: {endpoints: ["$refused", "$main"], host: upstream, retry: {budget: 100%}}
  down: {endpoints: ["$refused"], retry: {budget: 100%}}
  pair: {endpoints: ["$main", "$other"], retry: {budget: 100%, when: [connect, stale, reset, timeout], statuses: [503]}, timeouts: {response: 500ms}}
  once: {endpoints: ["$main"], retry: {attempts: 1}}
  puts: {endpoints: ["$main"], retry: {methods: [GET, PUT], buffer: 1KiB, budget: 100%}}
# Each test breaks endpoints that the next one needs.
defaults: {retry: {budget: 100%}, eject: null}
routes:
  - {name: main, match: {prefix: /}, upstream: main}
  - {name: half, match: {prefix: /half}, upstream: half}
  - {name: half-named, match: {prefix: /half-named}, upstream: half-named}
  - {name: down, match: {prefix: /down}, upstream: down}
  - {name: pair, match: {prefix: /pair}, upstream: pair}
  - {name: once, match: {prefix: /once}, upstream: once}
  - {name: puts, match: {prefix: /puts}, upstream: puts}
"""

# Retries on a status of requests that have a body. An upstream for each purpose.
EARLY = """
version: 1
server: {name: gw, overload: 0}
defaults:
  eject: null
  # A short body streams, too: else it would be here before an attempt begins.
  buffer: {request: 0}
  retry: {attempts: 3, statuses: [503], methods: [GET, PUT], backoff: 1ms, budget: 100%}
upstreams:
  pair: {endpoints: ["$other", "$main"]}
  single: {endpoints: ["$main"]}
  narrow: {endpoints: ["$main"], pool: {max_connections: 1}}
  twice: {endpoints: ["$main"], retry: {attempts: 2}}
routes:
  - {name: pair, match: {prefix: /pair}, upstream: pair}
  - {name: single, match: {prefix: /single}, upstream: single}
  - {name: narrow, match: {prefix: /narrow}, upstream: narrow}
  - {name: twice, match: {prefix: /twice}, upstream: twice}
"""

LIMITS = """
version: 1
server:
  name: gw
  overload: 0
  limits: {body: 16KiB}
upstreams:
  main: {endpoints: ["$main"], limits: {header: 8KiB, headers: 20}}
routes:
  - {name: main, match: {prefix: /}, upstream: main}
"""

IMPATIENT = """
version: 1
server:
  name: gw
  overload: 0
  timeouts: {header: 700ms, body: 700ms, write: 700ms, keepalive: 700ms, half_close: 500ms}
upstreams:
  main: {endpoints: ["$main"]}
routes:
  - {name: main, match: {prefix: /}, upstream: main}
"""

# An upstream for each test: what one has learnt of its endpoints, another would meet.
STAYING_UP = """
version: 1
server: {name: gw, overload: 0}
defaults: {retry: {attempts: 1}}
upstreams:
  outlier: {endpoints: ["$refused", "$main"], eject: {consecutive: 2, error_rate: 0%, for: 1h, max_for: 1h}}
  status: {endpoints: ["$main", "$other"], eject: {consecutive: 2, error_rate: 0%, for: 1h, max_for: 1h, statuses: [500]}}
  lonely: {endpoints: ["$refused"], eject: {consecutive: 1}}
  returning: {endpoints: ["$main", "$other"], eject: {consecutive: 2, error_rate: 0%, for: 300ms}}
  breaking: {endpoints: ["$main"], eject: null, breaker: {error_rate: 50%, min_requests: 4, window: 10s, open_for: 500ms}}
  one: {endpoints: ["$main"], concurrency: {limit: 1, queue: 0}}
  queue: {endpoints: ["$main"], concurrency: {limit: 1, queue: 1, queue_timeout: 400ms}}
  turn: {endpoints: ["$main"], concurrency: {limit: 1, queue: 1, queue_timeout: 10s}}
  told: {endpoints: ["$main"], deadline_header: X-Time-Left, timeouts: {response: 7s}}
  hedged: {endpoints: ["$main", "$other"], retry: {attempts: 2, hedge: true, budget: 100%}}
routes:
  - {name: outlier, match: {prefix: /outlier}, upstream: outlier}
  - {name: status, match: {prefix: /status}, upstream: status}
  - {name: lonely, match: {prefix: /lonely}, upstream: lonely}
  - {name: returning, match: {prefix: /returning}, upstream: returning}
  - {name: breaking, match: {prefix: /breaking}, upstream: breaking}
  - {name: one, match: {prefix: /one}, upstream: one}
  - {name: queue, match: {prefix: /queue}, upstream: queue}
  - {name: turn, match: {prefix: /turn}, upstream: turn}
  - {name: told, match: {prefix: /told}, upstream: told}
  - {name: told-total, match: {prefix: /told/total}, upstream: told, timeouts: {total: 3s}}
  - {name: hedged, match: {prefix: /hedged}, upstream: hedged}
"""

SHAPING = """
version: 1
server: {name: gw, overload: 0}
upstreams:
  main: {endpoints: ["$main"]}
  other: {endpoints: ["$other"]}
  refused: {endpoints: ["$refused"]}
  empty: {endpoints: [{url: "$refused", weight: 0}]}
  covered: {endpoints: [{url: "$refused", weight: 0}], fallback: empty-too}
  empty-too: {endpoints: [{url: "$refused", weight: 0}], fallback: main}
routes:
  - {name: main, match: {prefix: /}, upstream: main}
  - {name: moved-301, match: {path: /301}, redirect: {path: /new, status: 301}}
  - {name: moved-302, match: {path: /302}, redirect: {path: /new}}
  - {name: moved-303, match: {path: /303}, redirect: {path: /new, status: 303}}
  - {name: moved-307, match: {path: /307}, redirect: {path: /new, status: 307}}
  - {name: moved-308, match: {path: /308}, redirect: {path: /new, status: 308}}
  - {name: moved-prefix, match: {prefix: /old}, redirect: {prefix: /new, status: 308}}
  - {name: moved-port, match: {prefix: /port}, redirect: {port: 8443, scheme: https}}
  - {name: to-https, match: {host: secure.test}, priority: 1, redirect: {scheme: https, status: 301}}
  - {name: secure, match: {host: secure.test}, upstream: main}
  - {name: tea, match: {path: /tea}, respond: {status: 418, body: short and stout, headers: {Content-Type: text/plain}}}
  - {name: nothing, match: {path: /nothing}, respond: {status: 204}}
  - {name: split, match: {prefix: /split}, split: {by: "cookie:user", to: [{upstream: main, weight: 1}, {upstream: other, weight: 1}]}}
  - {name: drained, match: {prefix: /drained}, split: [{upstream: main, weight: 0}, {upstream: other, weight: 1}]}
  - {name: empty, match: {prefix: /empty}, upstream: empty}
  - {name: covered, match: {prefix: /covered}, upstream: covered, strip_prefix: true}
  - {name: mirror, match: {prefix: /mirror}, upstream: main, mirror: {upstream: other}, strip_prefix: true}
  - {name: mirror-refused, match: {prefix: /mirror-refused}, upstream: main, mirror: {upstream: refused}}
  - {name: mirror-none, match: {prefix: /mirror-none}, upstream: main, mirror: {upstream: other, percent: 0}}
"""

# What is held of bodies. One connection to an upstream: a second request shows whether the first has released it.
SHIELD = f"""
version: 1
server: {{name: gw, overload: 0, limits: {{buffers: 2MiB}}}}
admin: {{bind: inline, token: a-token-of-the-tests}}
defaults:
  retry: {{attempts: 1}}
  pool: {{max_connections: 1, queue_timeout: 300ms}}
upstreams:
  main: {{endpoints: ["$main"], buffer: {{response: 1MiB}}}}
  off: {{endpoints: ["$main"], buffer: {{request: 0, response: 0}}}}
  files: {{endpoints: ["$main"], buffer: {{spool: {tempfile.gettempdir()}}}}}
  small: {{endpoints: ["$main"], buffer: {{spool: {tempfile.gettempdir()}, spool_max: 250KiB}}}}
  nowhere: {{endpoints: ["$main"], buffer: {{spool: /proc/no/folder}}}}
  greedy: {{endpoints: ["$main"], buffer: {{request: 4MiB, response: 4MiB}}}}
  timed: {{endpoints: ["$main"], timeouts: {{total: 500ms}}}}
routes:
  - {{name: main, match: {{prefix: /}}, upstream: main}}
  - {{name: off, match: {{prefix: /off}}, upstream: off}}
  - {{name: files, match: {{prefix: /files}}, upstream: files}}
  - {{name: small, match: {{prefix: /small}}, upstream: small}}
  - {{name: nowhere, match: {{prefix: /nowhere}}, upstream: nowhere}}
  - {{name: greedy, match: {{prefix: /greedy}}, upstream: greedy}}
  - {{name: timed, match: {{prefix: /timed}}, upstream: timed}}
"""

# name: (configuration, the FakeUpstreams in it)
SCENES: dict[str, tuple[str, tuple[str, ...]]] = {
    "standard": (STANDARD, ("main",)),
    # A short body streams, too.
    "streaming": (f"{STANDARD}defaults: {{buffer: {{request: 0}}}}\n", ("main",)),
    "trusted": (TRUSTED, ("main",)),
    "routing": (ROUTING, ("main",)),
    "retries": (RETRIES, ("main", "other")),
    "early": (EARLY, ("main", "other")),
    "limits": (LIMITS, ("main",)),
    "impatient": (IMPATIENT, ("main",)),
    "staying-up": (STAYING_UP, ("main", "other")),
    "shield": (SHIELD, ("main",)),
    "shaping": (SHAPING, ("main", "other")),
}
