"""Small records of shapes world, made quickly, without a judge's checks."""

from pdgen.synthesis.settings import DatasetSettings, MultiTurn
from pdgen.synthesis.story import Teachers
from pdgen.synthesis.subsets import make_samples
from pdgen.teachers.exact.judge import ExactJudge
from pdgen.teachers.exact.painter import ShapesPainter
from pdgen.teachers.exact.writer import RulesWriter
from pdgen.teachers.protocols import Verdict


class Trusting:
    """A judge that accepts everything."""

    name = "trusting"

    def judge_plan(self, prompt, plans):
        return Verdict(accept=True, analysis="It agrees.")

    def judge_picture(self, plan, picture, previous=None):
        return Verdict(accept=True, analysis="It is as planned.")


# "assumed": a sample is not rejected for a fault that a trusting judge does not see.
ASSUMED = Teachers(ShapesPainter(64), Trusting(), RulesWriter(), assumed=True)
EXACT = Teachers(ShapesPainter(64), ExactJudge(), RulesWriter())


def trajectories(count, seed=0, fault_rate=0.3):
    """Make multi-turn records of one to three things, without latents."""
    settings = DatasetSettings(
        seed=seed,
        tasks={"composition": 1.0},
        entities=(0.3, 0.45, 0.25),
        rewritten=0.0,
        multi_turn=MultiTurn(count=count, fault_rate=fault_rate),
    )
    return make_samples(settings, ASSUMED, "multi_turn", range(count)).records
