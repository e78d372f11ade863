"""What becomes of fabio's routes."""

from __future__ import annotations

import json

import pytest

from gateway.commands.wording import told_end
from gateway.errors import ConfigError
from gateway.model import ConsulSource, StaticSource
from tests.imported import Imported, Went

CONFIG = """\
# commands
route add web example.com/shop http://10.0.0.1:8080/ weight 0.2 tags "a,b" opts "strip=/shop"
route add web example.com/shop http://10.0.0.2:8080/
route add tls secure.example/ https://10.0.0.3/base opts "proto=https tlsskipverify=true host=dst"
route add api /api http://10.0.0.4:9000/?k=v opts "auth=basic"
route add old /old http://10.0.0.4:9000/ opts "redirect=301,http://x/"
route add raw :1234 tcp://10.0.0.4:9000 opts "proto=tcp"
route add other /other http://10.0.0.5:9000/ opts "host=literal.example pxyproto=true"
route weight web example.com/shop weight 0.5 tags "a"
// tags
users: urlprefix-API.example.com/users strip=/users prepend=/v1
users: urlprefix-*.example.com/
users: other
secure: urlprefix-/secure proto=https host=secure.internal
glob: urlprefix-/a*/b
env: urlprefix-${DC}.example.com/
flat: urlprefix-flat.example
"""


@pytest.fixture(scope="module")
def sample() -> Imported:
    return Imported("fabio", CONFIG)


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("/shop/x?y", "example.com", Went("10.0.0.1:8080", "/x?y", "example.com")),
        ("/shop", "example.com", Went("10.0.0.1:8080", "/", "example.com")),
        ("/x", "secure.example", Went("10.0.0.3:443", "/x", "10.0.0.3")),
        ("/api/x", "any.example", Went("closed")),
        ("/old", "any.example", Went("-> 301 http://x/")),
        ("/other/x", "any.example", Went("10.0.0.5:9000", "/other/x", "literal.example")),
        ("/users/7", "api.example.com", Went("users", "/v1/7")),
        ("/x", "a.example.com", Went("users", "/x")),
        ("/secure/x", "any.example", Went("secure", "/secure/x")),
        ("/ab/b", "any.example", Went("")),
    ],
)
def test_a_request_goes_where_fabio_sends_it(target: str, host: str, expected: Went, sample: Imported) -> None:
    assert sample.ask(target, host) == expected


def test_weights_are_shares(sample: Imported) -> None:
    source = sample.config.upstreams["web"].source
    assert isinstance(source, StaticSource)
    assert [endpoint.weight for endpoint in source.endpoints] == [200, 800]


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        (["", ""], [1, 1]),
        ([" weight 0.5", " weight 1.5"], [250, 750]),
        ([" weight 0.5", "", ""], [500, 250, 250]),
        ([" weight 1", ""], [1000, 0]),
        ([" weight -1", ""], [1, 1]),
    ],
)
def test_shares(shares: list[str], weights: list[int]) -> None:
    lines = [f"route add s /s http://10.0.0.{number}:80/{share}\n" for number, share in enumerate(shares, 1)]
    source = Imported("fabio", "".join(lines)).config.upstreams["s"].source
    assert isinstance(source, StaticSource)
    assert [endpoint.weight for endpoint in source.endpoints] == weights


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('route add r a.example/ https://www.example$path opts "redirect=301"', "-> 301 https://www.example"),
        ('route add r a.example/ https://www.example:81/$path opts "redirect=307"', "-> 307 https://www.example:81"),
        ('route add r a.example/x https://www.example opts "redirect=302"', "-> 302 https://www.example/"),
        ('route add r a.example/x https://$host$path opts "redirect=301"', "-> 301 https://*"),
        ("r: urlprefix-a.example/x redirect=303,http://b.example/y", "-> 303 http://b.example/y"),
    ],
)
def test_redirects(line: str, told: str) -> None:
    found = Imported("fabio", f"{line}\n")
    assert [told_end(route) for route in found.config.routes] == [told]
    assert not found.config.upstreams


@pytest.mark.parametrize(
    "line",
    [
        'route add r a.example/ https://b/x$path opts "redirect=301"',
        'route add r a.example/ https://b$path opts "redirect=301 strip=/a"',
        'route add r a.example/ https://b/?q opts "redirect=301"',
        'route add r a.example/ https://b/ opts "redirect=yes"',
        "r: urlprefix-a.example/ redirect=301",
    ],
)
def test_redirects_that_cannot_be_expressed(line: str) -> None:
    with pytest.raises(ConfigError, match="is left out: its redirect cannot be expressed"):
        Imported("fabio", f"{line}\n")


def test_a_status_that_is_no_redirect() -> None:
    assert Imported("fabio", 'route add r /x http://b/ opts "redirect=300"\n').ask("/x").to == "closed"


def test_services_of_one_path_share_it() -> None:
    found = Imported("fabio", "a: urlprefix-/x\nb: urlprefix-/x\na: urlprefix-/x\nroute add c /x http://10.0.0.1/\n")
    (route,) = found.config.routes
    assert told_end(route) == "a 33.33%, b 33.33%, c 33.33%"
    assert "services of one path have equal shares here" in found.comments


def test_tls(sample: Imported) -> None:
    assert sample.config.upstreams["tls"].tls is not None
    assert sample.config.upstreams["secure"].scheme == "https"
    tls = sample.config.upstreams["secure"].tls
    assert tls is not None
    assert (tls.server_name, tls.verify) == ("secure.internal", True)


@pytest.mark.parametrize(
    "told",
    [
        "line 3: opts of web differ from those in line 2",
        "line 4: the path of https://10.0.0.3/base is left out",
        "line 5: closed: auth guarded it, and is not in this version; to open it: upstream: api",
        "line 7: raw :1234 is left out: proto=tcp",
        "line 8: pxyproto is not carried over",
        "line 9: route weight is not carried over",
        "line 13: a tag of users without urlprefix-",
        "line 15: glob /a*/b is left out: a pattern",
        "line 16: env ${DC}.example.com/ is left out: it takes something from fabio's environment",
        "line 17: flat flat.example is left out: there is no slash",
    ],
)
def test_what_is_lost_is_told(told: str, sample: Imported) -> None:
    assert told in sample.comments


TAGS = ["urlprefix-/web strip=/web", "blue"]


@pytest.mark.parametrize(
    "answer",
    [
        {"web": TAGS, "consul": []},
        [{"ServiceName": "web", "ServiceAddress": "10.0.0.1", "ServiceTags": TAGS}] * 2,
        {"web-1": {"ID": "web-1", "Service": "web", "Tags": TAGS, "Port": 80}},
        [{"Node": {"Node": "n"}, "Service": {"Service": "web", "Tags": TAGS}, "Checks": []}],
    ],
    ids=["/v1/catalog/services", "/v1/catalog/service/web", "/v1/agent/services", "/v1/health/service/web"],
)
def test_answers_of_consul(answer: object) -> None:
    found = Imported("fabio", json.dumps(answer))
    assert found.config.upstreams["web"].source == ConsulSource("web")
    assert found.ask("/web/x") == Went("web", "/x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("route add web /x\n", "sample:1:1: is neither a route command"),
        ("\nurlprefix-/x\n", "sample:2:1: is neither"),
        ('route add a /a http://x/ weight "x"\n', 'sample:1:1: weight "x" is no number'),
        ("[]", "holds no service"),
        ("{", "is not YAML"),
        ("# nothing\n", "nothing in it could be carried over from fabio"),
    ],
)
def test_what_cannot_be_read(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Imported("fabio", text)
    assert told in str(error.value)
