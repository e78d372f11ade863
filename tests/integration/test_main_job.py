"""The main job, end to end: real Consul, real services that die and return, the real gateway under load."""

from pathlib import Path

from tests import main_job
from tests.consul_agent import LastingConsul
from tests.services import Consul


def test_instances_die_and_return_and_consul_goes_away_and_nobody_notices(tmp_path: Path) -> None:
    with LastingConsul.start() as agent, main_job.running(agent, tmp_path, 1.0, print) as drill:
        drill.steady(3)
        drill.kill("users-1", "orders-1")
        drill.bring_back("users-1", "orders-1")
        drill.without_consul(5, agent.kill, agent.up, "killed (SIGKILL)")
        drill.without_consul(3, agent.freeze, agent.thaw, "hangs (SIGSTOP)")


def test_consul_that_comes_back_without_its_memory(tmp_path: Path) -> None:
    """An agent in development mode forgets every service; that nobody has registered yet is no news."""
    with Consul.start() as agent, main_job.running(agent, tmp_path, 1.0, print) as drill:

        def back() -> None:
            agent.up()
            drill.forgotten()

        drill.without_consul(3, agent.down, back, "stopped")
        drill.kill("users-2")
        drill.bring_back("users-2")
