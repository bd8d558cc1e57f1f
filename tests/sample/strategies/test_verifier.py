"""The learned verifier: its probability against the losses of training, its data against the sampler and the judge."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdgen.checkpoints.load import load
from pdgen.config import ComputeConfig
from pdgen.flow.denoise import ImageSettings
from pdgen.sample.model import make_model
from pdgen.sample.settings import SampleSettings
from pdgen.sample.strategies.estimates import draw_estimates, make_estimate_records
from pdgen.sample.strategies.search import Parm
from pdgen.sample.strategies.verifier import ModelVerifier, load_verifier, make_verdict_record
from pdgen.sequence.layout import Budgets, assemble, lay_out, stack
from pdgen.sequence.segments import record_segments
from pdgen.sequence.trajectory import check_grammar
from pdgen.teachers.verifier import ExactVerifier
from pdgen.train.objectives.loss import FlowInputs, token_losses
from tests.evaluate.painted import painted


@pytest.fixture(scope="module")
def model():
    return make_model(load("shapes_base"), ComputeConfig(dtype="float32"))


@pytest.fixture(scope="module")
def verifier(model):
    return ModelVerifier(model)


def answer_loss(model, prompt, picture, right):
    """The training loss of an answer's tokens."""
    record = make_verdict_record("r", prompt, picture, right)
    check_grammar(record)
    document = lay_out(record_segments(record, model.tokenizer, model.config), model.tokenizer, model.config)
    pack = stack([assemble([document], Budgets(*document.lengths), 0)])
    flow = FlowInputs(jnp.zeros((1, 0)), jnp.zeros((1, 0, model.config.latent_dim)))
    ce, _ = token_losses(*model.static, model.params["model"], jax.tree.map(jnp.asarray, pack), flow)
    return np.asarray(ce)[0][np.flatnonzero(pack.text_weights[0])]


def test_the_score_is_what_training_makes_likely(model, verifier):
    """p(yes) / (p(yes) + p(no)) from the losses of both answers, whose first tokens differ."""
    picture = np.asarray(painted("a red circle", 0))
    yes, no = (answer_loss(model, "a red circle", picture, right)[0] for right in (True, False))
    expected = np.exp(-yes) / (np.exp(-yes) + np.exp(-no))
    np.testing.assert_allclose(verifier.score("a red circle", picture), expected, rtol=1e-4)


def test_the_base_tells_a_right_picture_from_a_wrong_one(verifier):
    picture = np.asarray(painted("a red circle", 0))
    assert verifier.score("a red circle", picture) > 0.7 > 0.3 > verifier.score("a green star", picture)


def test_a_verifier_is_loaded_once_and_parm_takes_its_name():
    assert load_verifier("shapes_base") is load_verifier("shapes_base")
    assert Parm(verifier="shapes_base").verifier == "shapes_base" and not Parm().verifier


@pytest.mark.slow
def test_estimates_are_of_the_sampler_and_labelled_by_what_becomes_of_them(sampler):
    settings = SampleSettings(
        mode="single_pass", batch_size=2, height=32, width=32, image=ImageSettings(num_timesteps=5)
    )
    prompts, seeds = ["a red circle", "two stars"], [3, 4]
    drawn = draw_estimates(sampler, prompts, seeds, settings)
    finished = sampler(prompts, seeds, settings)
    for one, whole in zip(drawn, finished):
        assert sorted(one.pictures) == [0.25, 0.5, 0.75, 1.0]
        np.testing.assert_array_equal(np.asarray(one.pictures[1.0]), np.asarray(whole.images[-1]))
    skipped = collections.Counter()
    records = list(make_estimate_records(sampler, ExactVerifier(), [*prompts, "nice"], 1, settings, 3, skipped))
    assert [record.id for record in records] == [
        f"{n}/{share}" for n in (3, 4) for share in ("0.25", "0.5", "0.75", "1")
    ]
    assert sum(skipped.values()) == 1
    for record in records:
        check_grammar(record)
        final = np.asarray(finished[int(record.id[0]) - 3].images[-1])
        right = ExactVerifier().score(record.scene["prompt"], final) == 1
        assert record.segments[-1].text == ("Yes." if right else "No.")
