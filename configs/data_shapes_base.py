"""Training data of shapes world's base model: pictures of prompts, questions about pictures, and edits.

python launch/build_data.py --config=configs/data_shapes_base.py --output=out/base_data

Builds 135,000 records: 60,000 prompts with pictures, 50,000 questions with answers, 25,000 edits. The page is
out/base_data/index.html.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.synthesis.settings.DatasetSettings``."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.image_size = 64
    config.shard_size = 500
    config.latents = True
    config.tasks = ml_collections.ConfigDict(
        {
            "single_object": 0.06,
            "two_object": 0.12,
            "counting": 0.14,
            "colors": 0.06,
            "position": 0.16,
            "color_attr": 0.1,
            "composition": 0.36,
        }
    )
    config.places = 0.9
    config.text_to_image = ml_collections.ConfigDict(
        {
            "count": 60000,
            "things": (0.2, 0.25, 0.2, 0.15, 0.1, 0.1),
            "wordings": {"prompt": 0.65, "description": 0.1, "caption": 0.05, "places": 0.2},
            "thoughts": 0.7,
        }
    )
    config.understand = ml_collections.ConfigDict({"count": 50000, "things": (0.2, 0.25, 0.2, 0.15, 0.1, 0.1)})
    config.edit = ml_collections.ConfigDict({"count": 25000, "things": (0.2, 0.25, 0.2, 0.15, 0.1, 0.1), "places": 0.7})
    config.multi_turn = ml_collections.ConfigDict({"count": 0})
    config.conflict = ml_collections.ConfigDict({"positive": 0, "negative": 0})
    config.alignment = ml_collections.ConfigDict({"positive": 0, "negative": 0})
    return config
