"""One studio of the golden nano model for all tests that leave it running."""

import pytest

from pdgen.sample.sampler import Sampler
from tests.sample.conftest import TERSE, checkpoint, restrict, use, whole_grammar  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def sampler(checkpoint, whole_grammar):  # noqa: F811
    """As that of tests/sample, but compiled quickly: a studio compiles every part of a picture's schedule."""
    sampler = Sampler.from_checkpoint(checkpoint, quick=True)
    use(sampler, restrict(whole_grammar, sampler.model.tokenizer, TERSE))
    return sampler


@pytest.fixture(scope="session")
def running(sampler, tmp_path_factory):
    from tests.studio.running import running_studio  # the tests skip before, where the extra is not installed

    with running_studio(sampler, tmp_path_factory.mktemp("studio") / "out") as running:
        yield running
