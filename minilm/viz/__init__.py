"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
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
    "clocks",
    "compare_part",
    "decoder_map",
    "differences",
    "explore",
    "heat_map",
    "lines_of",
    "losses_by_position",
    "mask_and_weights",
    "mask_grids",
    "nan_by_layer",
    "partners",
    "reference_of",
    "score_by_distance",
    "score_tables",
    "spread_of_change",
    "subplots",
    "token_losses",
    "turning_pair",
    "windows_by_layer",
]
