"""First plans of a model, with nothing after them: self-sampling judges these."""

from collections.abc import Callable, Sequence

from pdgen.sample.settings import SampleSettings
from pdgen.sample.text import TextSettings
from pdgen.sequence.trajectory import TextStage, Trajectory

Sample = Callable[[Sequence[str], Sequence[int], SampleSettings], list[Trajectory]]


def make_plan_writer(
    sampler: Sample, temperature: float, batch_size: int
) -> Callable[[Sequence[str], Sequence[int]], list[str]]:
    """Make a function from prompts and as many seeds to the model's first plan for each prompt.

    Every call samples batches of ``batch_size`` rows, padded if need be, so that it compiles once. A plan depends on
    its own prompt and seed alone. ``temperature`` 0 is greedy.
    """
    settings = SampleSettings(max_images=0, text=TextSettings(temperature=temperature))

    def write(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        plans: list[str] = []
        for start in range(0, len(prompts), batch_size):
            some, keys = [*prompts[start : start + batch_size]], [*seeds[start : start + batch_size]]
            missing = batch_size - len(some)
            drawn = sampler(some + some[:1] * missing, keys + keys[:1] * missing, settings)
            stages = [one.stages[0] for one in drawn[: len(some)]]
            plans += [stage.text for stage in stages if isinstance(stage, TextStage)]
        return plans

    return write
