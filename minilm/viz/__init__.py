"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.activations import (
    bends,
    clouds,
    coloured_text,
    curves,
    gate_planes,
    neuron_values,
    neurons_at_work,
    root_mean_square,
    rounding_errors,
    size_in_size_out,
    stream_sizes,
    streams,
)
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.decoder import decoder_map
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair

__all__ = [
    "Picture",
    "Table",
    "bends",
    "clocks",
    "clouds",
    "coloured_text",
    "compare_part",
    "curves",
    "decoder_map",
    "differences",
    "explore",
    "gate_planes",
    "heat_map",
    "lines_of",
    "losses_by_position",
    "neuron_values",
    "neurons_at_work",
    "partners",
    "reference_of",
    "root_mean_square",
    "rounding_errors",
    "score_by_distance",
    "score_tables",
    "size_in_size_out",
    "stream_sizes",
    "streams",
    "subplots",
    "token_losses",
    "turning_pair",
]
