"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.decoder import decoder_map
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair
from minilm.viz.tokens import float_bits, memory_paths, number_grid, number_tables, padded_rows, piece_rows

__all__ = [
    "Picture",
    "Table",
    "clocks",
    "compare_part",
    "decoder_map",
    "differences",
    "explore",
    "float_bits",
    "heat_map",
    "lines_of",
    "losses_by_position",
    "memory_paths",
    "number_grid",
    "number_tables",
    "padded_rows",
    "partners",
    "piece_rows",
    "reference_of",
    "score_by_distance",
    "score_tables",
    "subplots",
    "token_losses",
    "turning_pair",
]
