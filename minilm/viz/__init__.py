"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.contexts import (
    angles_by_position,
    angles_met,
    compare_scalings,
    losses_by_pair,
    perplexity_by_position,
    slowdowns,
)
from minilm.viz.decoder import decoder_map
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.masks import (
    MaskGrid,
    mask_and_weights,
    mask_grids,
    nan_by_layer,
    spread_of_change,
    windows_by_layer,
)
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair

__all__ = [
    "MaskGrid",
    "Picture",
    "Table",
    "angles_by_position",
    "angles_met",
    "clocks",
    "compare_part",
    "compare_scalings",
    "decoder_map",
    "differences",
    "explore",
    "heat_map",
    "lines_of",
    "losses_by_pair",
    "losses_by_position",
    "mask_and_weights",
    "mask_grids",
    "nan_by_layer",
    "partners",
    "perplexity_by_position",
    "reference_of",
    "score_by_distance",
    "score_tables",
    "slowdowns",
    "spread_of_change",
    "subplots",
    "token_losses",
    "turning_pair",
    "windows_by_layer",
]
