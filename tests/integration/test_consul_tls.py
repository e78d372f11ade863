"""Consul over https, as the variables of its own tools say: a real agent that wants a certificate of its clients."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from gateway import config
from gateway.model import ConsulSource
from gateway.registries import RegistryError
from gateway.registries.consul import ConsulApi
from tests import services
from tests.services import Consul, free_port

SOURCE = ConsulSource("user-svc")


@dataclass(frozen=True, slots=True)
class Secured:
    """An agent with an instance of user-svc. `environ`: what its clients need; `address` without a scheme."""

    address: str
    environ: dict[str, str]
    folder: Path

    def instances(self, **environ: str | None) -> int:
        """How many are found with the variables of `environ`; None: it is not set. Raises RegistryError."""
        given = {**self.environ, **environ}
        found = config.loads(b"version: 1\n", "f", {name: value for name, value in given.items() if value is not None})
        api = ConsulApi(found.discovery.consul)
        try:
            payload = api.passing(SOURCE).payload()
        finally:
            api.close()
        assert isinstance(payload, list)
        return len(payload)


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        for owner, certificate in (("server", authority.issue_cert("127.0.0.1")), ("client", authority.issue_cert("gw"))):
            certificate.private_key_pem.write_to_path(str(folder / f"{owner}.key"))
            certificate.cert_chain_pems[0].write_to_path(str(folder / f"{owner}.pem"))
        agent, port = Consul(), free_port()
        settings = {
            "ports": {"https": port},
            # Older agents know these alone, newer ones still do.
            "ca_file": str(folder / "ca.pem"),
            "cert_file": str(folder / "server.pem"),
            "key_file": str(folder / "server.key"),
            "verify_incoming_https": True,
        }
        (folder / "agent.json").write_text(json.dumps(settings))
        agent.server.command += ["-config-file", str(folder / "agent.json")]
        try:
            agent.up()
            agent.register("user-svc", "u1", 8080)
            services.wait_until(lambda: agent.passing("user-svc") == {"u1"}, "the instance is listed")
            environ = {
                "CONSUL_HTTP_ADDR": f"127.0.0.1:{port}",
                "CONSUL_HTTP_SSL": "true",
                "CONSUL_CACERT": str(folder / "ca.pem"),
                "CONSUL_CLIENT_CERT": str(folder / "client.pem"),
                "CONSUL_CLIENT_KEY": str(folder / "client.key"),
            }
            yield Secured(f"127.0.0.1:{port}", environ, folder)
        finally:
            agent.server.close()


def test_its_own_variables_are_enough(secured: Secured) -> None:
    assert secured.instances() == 1
    assert secured.instances(CONSUL_HTTP_ADDR=f"http://{secured.address}") == 1
    assert secured.instances(CONSUL_HTTP_ADDR=f"https://{secured.address}", CONSUL_HTTP_SSL=None) == 1


def test_an_authority_that_is_not_known_is_refused(secured: Secured) -> None:
    with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
        secured.instances(CONSUL_CACERT=None)
    with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
        secured.instances(CONSUL_CACERT=None, CONSUL_HTTP_SSL_VERIFY="true")


@pytest.mark.filterwarnings("error")
def test_verification_can_be_switched_off(secured: Secured) -> None:
    assert secured.instances(CONSUL_CACERT=None, CONSUL_HTTP_SSL_VERIFY="false") == 1


def test_without_a_certificate_the_agent_refuses(secured: Secured) -> None:
    with pytest.raises(RegistryError):
        secured.instances(CONSUL_CLIENT_CERT=None, CONSUL_CLIENT_KEY=None)


def test_certificates_that_were_renewed_are_used(secured: Secured) -> None:
    """As tools do that keep them fresh: by another file of the same name."""
    ca = secured.folder / "renewed.pem"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    found = config.loads(b"version: 1\n", "f", {**secured.environ, "CONSUL_CACERT": str(ca)})
    api = ConsulApi(found.discovery.consul)
    with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
        api.passing(SOURCE)
    ca.write_bytes((secured.folder / "ca.pem").read_bytes())
    assert len(api.passing(SOURCE).payload()) == 1  # type: ignore[arg-type]
    api.close()
