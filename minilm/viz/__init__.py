"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.decoder import decoder_map
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.packing import batch_fill, compare_packed, packed_maps, unpadding
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair
from minilm.viz.tiles import (
    Traffic,
    alignments,
    compare_backends,
    running_softmax,
    shares,
    tiles_visited,
    traffic,
)

__all__ = [
    "Picture",
    "Table",
    "Traffic",
    "alignments",
    "batch_fill",
    "clocks",
    "compare_backends",
    "compare_packed",
    "compare_part",
    "decoder_map",
    "differences",
    "explore",
    "heat_map",
    "lines_of",
    "losses_by_position",
    "packed_maps",
    "partners",
    "reference_of",
    "running_softmax",
    "score_by_distance",
    "score_tables",
    "shares",
    "subplots",
    "tiles_visited",
    "token_losses",
    "traffic",
    "turning_pair",
    "unpadding",
]
