"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.attention import (
    attention_maps,
    bytes_read,
    cache_bars,
    feature_rows,
    head_grids,
    scores_by_width,
    sharing,
    soft_lookup,
    softmax_errors,
    token_labels,
)
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.decoder import decoder_map
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair

__all__ = [
    "Picture",
    "Table",
    "attention_maps",
    "bytes_read",
    "cache_bars",
    "clocks",
    "compare_part",
    "decoder_map",
    "differences",
    "explore",
    "feature_rows",
    "head_grids",
    "heat_map",
    "lines_of",
    "losses_by_position",
    "partners",
    "reference_of",
    "score_by_distance",
    "score_tables",
    "scores_by_width",
    "sharing",
    "soft_lookup",
    "softmax_errors",
    "subplots",
    "token_labels",
    "token_losses",
    "turning_pair",
]
