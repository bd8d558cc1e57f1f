"""The first plans that a model writes, and nothing after them: what self-sampling judges."""

from collections.abc import Callable, Sequence

from pdgen.sample.engine import Sampler, SampleSettings
from pdgen.sample.text import TextSettings


def first_plans(
    sampler: Sampler, temperature: float, together: int
) -> Callable[[Sequence[str], Sequence[int]], list[str]]:
    """A function from prompts and as many seeds to the plan that the model writes for each.

    Every call samples rows in batches of ``together``, filled up if need be, so that it compiles once; a plan depends
    on its own prompt and seed alone.

    Args:
      temperature: of the texts; 0 = greedy.
    """
    settings = SampleSettings(max_images=0, text=TextSettings(temperature=temperature))

    def write(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        plans: list[str] = []
        for start in range(0, len(prompts), together):
            some, keys = [*prompts[start : start + together]], [*seeds[start : start + together]]
            missing = together - len(some)
            drawn = sampler(some + some[:1] * missing, keys + keys[:1] * missing, settings)
            plans += [one.stages[0].text for one in drawn[: len(some)]]
        return plans

    return write
