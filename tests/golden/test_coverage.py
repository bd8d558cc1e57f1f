"""Which test checks which golden number: a number without a check and a check that is gone are faults."""

import pathlib

from tests.golden.test_sampling import BRANCHES

# Prefixes end with a dot. "GIVEN" is what the reference was given, not what it computed.
NUMBERS = {
    "test_autoencoder.py": ["vae.moments", "vae.latent_mean", "vae.decoded", "train.padded_latent"],
    "test_layout.py": [
        "train.packed_position_ids",
        "train.packed_text_indexes",
        "train.packed_vit_token_indexes",
        "train.packed_vae_token_indexes",
        "train.packed_text_ids",
        "train.packed_vit_position_ids",
        "train.packed_latent_position_ids",
        "train.packed_label_ids",
        "train.ce_loss_indexes",
        "train.ce_loss_weights",
        "train.mse_loss_indexes",
        "train.vit_token_seqlens",
        "train.attention_allowed",
    ],
    "test_model.py": [
        "train.vit_hidden",
        "train.vit_connected",
        "train.timestep_embedding",
        "train.timesteps",
        "train.input_embeddings",
        "train.last_hidden_state",
        "train.ce_per_token",
        "train.mse_per_element",
        "train.ce_loss",
        "train.mse_loss",
        "train.loss",
        "grad.",
        "grad_norm.",
    ],
    "test_sampling.py": [
        "infer.cache.",
        "infer.latent.",
        "infer.text_tokens",
        "infer.text_logits",
    ],
    "GIVEN": [
        "vae.image",
        "train.padded_images",
        "train.noise",
        "train.packed_timesteps_logit",
        "train.packed_vit_tokens",
        "infer.image_vae",
        "infer.image_vit",
        "infer.init_noise",
    ],
}
TABLES = {
    "test_layout.py": ["splits", "sample_lens", "kv_len", "rope"],
    "test_model.py": ["vae_latent_shapes"],
    "test_sampling.py": ["kv_len", "rope"],
    "test_tables.py": ["resize_table", "position_ids"],
    "test_tokenizer.py": ["tokenizer"],
}
# What a test reads to know what to compute; "text_loss_weight" says in words what ce_loss_weights holds.
SETTINGS = {"bos", "eos", "soi", "eoi", "samples", "loss_weights", "infer", "text_loss_weight"}
INFER_SETTINGS = {"prompt_ids", "plan_ids", "image_grid", "runs", *BRANCHES}


def source(module):
    return (pathlib.Path(__file__).parent / module).read_text()


def test_every_number_is_checked(golden):
    listed = [name for names in NUMBERS.values() for name in names]
    groups = tuple(name for name in listed if name.endswith("."))
    unchecked = {name for name in golden.numbers if name not in listed and not name.startswith(groups)}
    assert not unchecked


def test_every_table_is_checked(golden):
    """The keys of expected.json, those of its "infer" included."""
    listed = {name for names in TABLES.values() for name in names}
    infer = golden.expected["infer"].keys() - INFER_SETTINGS
    assert golden.expected.keys() - SETTINGS - listed == set()
    assert {name.removeprefix("cfg_text_").removeprefix("cfg_img_") for name in infer} <= listed


def test_the_modules_name_what_they_check():
    for module, names in [*NUMBERS.items(), *TABLES.items()]:
        for name in names if module != "GIVEN" else ():
            fragment = name.removeprefix("train.").removeprefix("packed_").removesuffix("_indexes")
            assert f'"{fragment}' in source(module) or name in source(module), f"{module} does not check {name}"
