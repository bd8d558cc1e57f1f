"""Who is asked from outside while pictures are sampled: all exact, or all on a chat endpoint."""

from typing import NamedTuple

from pdgen.teachers.endpoint import Endpoint
from pdgen.teachers.planner import MAX_STEPS, EndpointPlanner, ExactPlanner
from pdgen.teachers.protocols import Critic, Planner, Verifier
from pdgen.teachers.verifier import EndpointCritic, EndpointVerifier, ExactCritic, ExactVerifier


class Advisers(NamedTuple):
    """One of each; see ``pdgen.teachers.protocols``."""

    planner: Planner
    critic: Critic
    verifier: Verifier


def make_exact_advisers(seed: int = 0, max_steps: int = MAX_STEPS) -> Advisers:
    """Those of shapes world; ``seed`` decides wordings, ``max_steps`` is the planner's."""
    return Advisers(ExactPlanner(seed, max_steps), ExactCritic(seed), ExactVerifier())


def make_endpoint_advisers(endpoint: Endpoint, max_steps: int = MAX_STEPS) -> Advisers:
    """Any vision model behind a chat endpoint; ``max_steps`` is the planner's."""
    return Advisers(EndpointPlanner(endpoint, max_steps), EndpointCritic(endpoint), EndpointVerifier(endpoint))
