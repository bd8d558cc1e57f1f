"""Training data of the first stage of shapes world's base model: texts that state every position, with pictures.

python launch/build_data.py --config=configs/data_shapes_places.py --output=out/places_data

Builds 40,000 records, such as "The picture shows a red circle at the top left and two blue stars on the right.".
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the keys of ``pdgen.synthesis.settings.DatasetSettings``."""
    config = ml_collections.ConfigDict()
    config.seed = 1
    config.image_size = 64
    config.shard_size = 500
    config.latents = True
    config.text_to_image = ml_collections.ConfigDict(
        {"count": 40000, "things": (0.15, 0.25, 0.2, 0.15, 0.15, 0.1), "wordings": {"places": 1.0}}
    )
    config.multi_turn = ml_collections.ConfigDict({"count": 0})
    config.conflict = ml_collections.ConfigDict({"positive": 0, "negative": 0})
    config.alignment = ml_collections.ConfigDict({"positive": 0, "negative": 0})
    return config
