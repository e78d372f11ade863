"""Group B, an endpoint's own path and query; and B as a whole where the scene is the standard one."""

from __future__ import annotations

import pytest

from tests.conformance.harness import request

SCENE = "standard"


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"/based/c%2Fd?us=er", b"/a%2Fb/c%2Fd?sta=tic&us=er"),
        (b"/based/c", b"/a%2Fb/c?sta=tic"),
        (b"/based/c?", b"/a%2Fb/c?sta=tic"),
        (b"/based", b"/a%2Fb/?sta=tic"),
        (b"/based/", b"/a%2Fb/?sta=tic"),
        (b"/based/%zz?a=%zz&b", b"/a%2Fb/%zz?sta=tic&a=%zz&b"),
    ],
)
def test_base_path_and_query_are_joined(scene, upstream, target, seen):
    scene.ask(request(target))
    # `?sta=tic` and `?sta=tic&` say the same: both are joins of the two
    assert upstream.last.target in (seen, seen + b"&")
