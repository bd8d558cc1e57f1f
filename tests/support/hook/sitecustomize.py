"""Checks annotations of pdgen in processes that tests start; Python imports this file at its start."""

import jaxtyping

jaxtyping.install_import_hook("pdgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
