"""QC-FQL, by its authors' code: FQL on chunks."""

import dataclasses

from ..mapping import Way, chunks, draws, horizon
from .fql import MAPPING as FQL

MAPPING = dataclasses.replace(
    FQL,
    config=lambda there: FQL.config(there) | horizon(there),
    batch=chunks,
    draws=draws("normal next_onestep_noise", "uniform flow_t", "normal flow_x0", "normal distill_noise"),
    ways={"act": Way(draws=draws("normal onestep_noise"))},
    left_out={"loss/grad/*": "gradients themselves are compared"},
)
