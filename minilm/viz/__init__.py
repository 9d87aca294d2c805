"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.cache import (
    compare_caches,
    damage_by_position,
    filling,
    kinds_of_cache,
    reordered,
    scores_by_call,
)
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.decoder import decoder_map
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair

__all__ = [
    "Picture",
    "Table",
    "clocks",
    "compare_caches",
    "compare_part",
    "damage_by_position",
    "decoder_map",
    "differences",
    "explore",
    "filling",
    "heat_map",
    "kinds_of_cache",
    "lines_of",
    "losses_by_position",
    "partners",
    "reference_of",
    "reordered",
    "score_by_distance",
    "score_tables",
    "scores_by_call",
    "subplots",
    "token_losses",
    "turning_pair",
]
