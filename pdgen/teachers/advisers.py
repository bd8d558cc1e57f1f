"""The teachers that guide sampling: all exact, or all on a chat endpoint."""

from typing import NamedTuple

from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.planner import MAX_STEPS, EndpointPlanner, ExactPlanner
from pdgen.teachers.protocols import Critic, Planner, Verifier
from pdgen.teachers.verifier import EndpointCritic, EndpointVerifier, ExactCritic, ExactVerifier


class Advisers(NamedTuple):
    """A planner, a critic and a verifier; see ``pdgen.teachers.protocols``."""

    planner: Planner
    critic: Critic
    verifier: Verifier


def make_exact_advisers(seed: int = 0, max_steps: int = MAX_STEPS) -> Advisers:
    """Make the advisers of shapes world. ``seed`` determines the wording, ``max_steps`` limits the planner."""
    return Advisers(ExactPlanner(seed, max_steps), ExactCritic(seed), ExactVerifier())


def make_endpoint_advisers(endpoint: Endpoint, max_steps: int = MAX_STEPS) -> Advisers:
    """Make advisers from any vision model behind a chat endpoint. ``max_steps`` limits the planner."""
    return Advisers(EndpointPlanner(endpoint, max_steps), EndpointCritic(endpoint), EndpointVerifier(endpoint))
