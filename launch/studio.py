"""Opens the studio: a page and an API on which people paint together with the model.

python launch/studio.py
python launch/studio.py --checkpoint=out/mine --folder=out/mine-studio --port=8401

Open the printed address in a browser. Everything is saved in FOLDER as trajectories that launch/sample.py reads and
branches; started again, the studio shows them, and unfinished ones can continue. docs/studio.md describes the page and
the API. Other machines reach it only with --host; then a token is needed, which is part of the printed address.
"""

import contextlib
import dataclasses
import pathlib
import secrets
import signal

from absl import flags

from pdgen.checkpoints.shipped import PROCESS
from pdgen.cli import run_command
from pdgen.files import check_writable
from pdgen.sample.compiled import keep_compiled
from pdgen.sample.sampler import Sampler
from pdgen.sample.settings import SampleSettings, make_base_settings
from pdgen.studio.hosts import is_local

CHECKPOINT = flags.DEFINE_string("checkpoint", PROCESS, "A pdgen checkpoint or a training run's workdir.")
FOLDER = flags.DEFINE_string("folder", "out/studio", "Folder of all trajectories and corrections.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; another than this machine's own needs a token.")
PORT = flags.DEFINE_integer("port", 8400, "Port to listen on.", lower_bound=0, upper_bound=65535)
TOKEN = flags.DEFINE_string("token", None, "What clients must show; by default drawn at random for another --host.")
SLOTS = flags.DEFINE_integer("slots", 8, "Trajectories that are drawn at the same time; others wait.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 1, "Rows in one evaluation of the network; raise it on a GPU.", lower_bound=1)
NUM_TIMESTEPS = flags.DEFINE_integer("num_timesteps", None, "Default points of an image's schedule.", lower_bound=2)
MAX_IMAGES = flags.DEFINE_integer("max_images", None, "Default and largest number of images drawn.", lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "Default and largest number of tokens of a text.", lower_bound=1)


def choose_token(host: str) -> str | None:
    """Return the token that clients must show. Raises ValueError for one that is easily guessed."""
    if TOKEN.value is not None and len(TOKEN.value) < 16:
        raise ValueError("--token: needs at least 16 characters; leave it out to have one drawn")
    if TOKEN.value is not None and not (TOKEN.value.isascii() and TOKEN.value.replace("-", "").isalnum()):
        raise ValueError("--token: use letters, digits and dashes")
    return TOKEN.value or (None if is_local(host) else secrets.token_hex(16))


def read_settings() -> SampleSettings:
    """Return the studio's default settings, changed by flags. Raises ValueError for a value out of range."""
    settings = make_base_settings("process")
    text = {} if MAX_TOKENS.value is None else {"max_tokens": MAX_TOKENS.value}
    image = {} if NUM_TIMESTEPS.value is None else {"num_timesteps": NUM_TIMESTEPS.value}
    return dataclasses.replace(
        settings,
        max_images=MAX_IMAGES.value or settings.max_images,
        text=dataclasses.replace(settings.text, **text),
        image=dataclasses.replace(settings.image, **image),
        batch_size=BATCH.value,
    )


def run_studio() -> int:
    """Load the model, open the folder, and serve until a signal comes."""
    try:
        from pdgen.studio.serving import serve
    except ModuleNotFoundError as fault:
        raise ValueError(f"{fault.name} is not installed; pip install -e '.[studio]'") from None
    token, settings = choose_token(HOST.value), read_settings()
    check_writable(FOLDER.value)
    keep_compiled()
    sampler = Sampler.from_checkpoint(CHECKPOINT.value)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # after JAX, which sets its own handler
    with contextlib.suppress(KeyboardInterrupt):
        serve(sampler, settings, pathlib.Path(FOLDER.value), SLOTS.value, (HOST.value, PORT.value), token)
    return 0


if __name__ == "__main__":
    run_command(run_studio)
