"""The autoencoder of shapes world, as shipped in pdgen/assets/shapes/ae.safetensors.

python launch/assets.py autoencoder --config=configs/shapes_autoencoder.py --workdir=out/autoencoder

Results: 41.9 dB PSNR on 500 held-out scenes, 2.0 MB. After a round trip the detector still reads all 1,746 objects
correctly. The 16,000 steps took 66 minutes of processor time. The trained latents, including the posterior's noise,
have mean 0.00 to 0.02 and standard deviation 0.96 to 1.01 per channel; the noise alone has 0.14 to 0.99. In the shipped
encoder, whose posterior is narrowed, the noise has 0.01 and the latents have 0.14 to 0.98.

Alternatives: the absolute error stayed near 14 dB where the squared error reached 17 after 180 steps. 32 groups on 32
channels normalise every channel on its own and lose the colours: after 1,200 pictures their mean absolute error was
0.35, that of 64 channels 0.25.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the config; ``train`` has the keys of ``pdgen.train.release.autoencoder.AutoencoderTrainConfig``.

    ``train.seed`` also seeds the scenes.
    """
    config = ml_collections.ConfigDict()
    config.model = "nano"  # the preset whose autoencoder is trained
    config.image_size = 64
    config.pictures = 20_000
    config.free_share = 0.15  # of pictures with freely placed objects; held-out pictures use the lattice
    config.held_out = 500
    config.train = ml_collections.ConfigDict()
    config.train.steps = 16_000
    config.train.decoder_share = 0.15
    config.train.batch_size = 8
    config.train.learning_rate = 2.5e-3
    config.train.kl_weight = 3e-4
    config.train.seed = 0
    return config
