"""The same history leads to the same next segment, for any number of rows in a group and any number of devices.

The order of sums differs, so results differ by rounding, and by no more.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest

from pdgen.flow.denoise import ImageSettings
from pdgen.sample.sampler import Sampler
from pdgen.sharding import make_mesh
from tests.sample.conftest import SETTINGS, TERSE, recording, restrict, use

pytestmark = pytest.mark.slow

# Of the largest value. float32 rounds at 6e-8 of each; two layers, and two steps guided by 4 x 1.5, leave up to 1e-6.
TOLERANCE = 1e-5
ASKED = dataclasses.replace(SETTINGS, image=ImageSettings(num_timesteps=3))


class Next(NamedTuple):
    """What follows a history: logits after its last token; an image's latents, or a text and the logits after it."""

    decisive: np.ndarray
    text: list[int] | None
    result: np.ndarray


def picture(seed):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(256, size=(32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def branches(sampler):
    """A trajectory of a given image, a plan, two images and two inspections, branched at each stage."""
    whole = sampler.make_starts(["two red circles"], [22], ASKED, [[picture(0)]])[0]
    whole = whole.branch(1, plan="<ins>Draw two.</ins> <des>Two red circles.</des>").branch(2, image=picture(1))
    whole = whole.branch(3, critique="One is blue. <refine>Paint it red.</refine>").branch(4, image=picture(2))
    whole = whole.branch(5, critique="All is well.")
    return [whole.branch(stage) for stage in range(1, 7)]


def next_segments(sampler, branches, batch_size):
    batch = sampler.make_batch(branches, dataclasses.replace(ASKED, batch_size=batch_size))
    batch.settle()
    for row in batch.rows.values():
        row.stop_reason = None  # write a text even where the model would have ended
    decisive = np.array(batch.state.logits)
    images = [slot for slot, one in enumerate(branches) if one.kinds[-1] in ("plan", "inspect+refine")]
    texts = [slot for slot in range(len(branches)) if slot not in images]
    with recording(sampler) as recorder:
        batch.draw_images(images)
        batch.write_texts(texts)
    latents = {slot: call.result.x[place] for call in recorder.named("draw") for place, slot in call.rows}
    drawn = {slot: Next(decisive[slot], None, latents[slot]) for slot in images}
    logits = np.array(batch.state.logits)
    return drawn | {slot: Next(decisive[slot], batch.rows[slot].stages[-1].ids, logits[slot]) for slot in texts}


@pytest.fixture(scope="module")
def one_by_one(sampler, branches):
    return next_segments(sampler, branches, batch_size=1)


def check_near(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=what)


@pytest.mark.parametrize(("batch_size", "mesh"), [(2, None), (8, None), (2, (1, 2, 2))], ids=str)
def test_the_next_segment(sampler, checkpoint, whole_grammar, branches, one_by_one, batch_size, mesh):
    if mesh:
        sampler = Sampler.from_checkpoint(checkpoint, mesh=make_mesh(mesh, jax.devices()[: np.prod(mesh)]))
        use(sampler, restrict(whole_grammar, sampler.model.tokenizer, TERSE))
    following = next_segments(sampler, branches, batch_size)
    assert len(following) == len(branches) == 6
    for slot, expected in one_by_one.items():
        what = f"after {branches[slot].kinds}"
        check_near(following[slot].decisive, expected.decisive, f"decision {what}")
        assert following[slot].text == expected.text, what
        check_near(following[slot].result, expected.result, f"next segment {what}")
