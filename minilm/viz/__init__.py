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
from minilm.viz.tokens import float_bits, memory_paths, number_grid, number_tables, padded_rows, piece_rows

__all__ = [
    "MaskGrid",
    "Picture",
    "Table",
    "Traffic",
    "alignments",
    "angles_by_position",
    "angles_met",
    "batch_fill",
    "clocks",
    "compare_backends",
    "compare_caches",
    "compare_packed",
    "compare_part",
    "compare_scalings",
    "damage_by_position",
    "decoder_map",
    "differences",
    "explore",
    "filling",
    "float_bits",
    "heat_map",
    "kinds_of_cache",
    "lines_of",
    "losses_by_pair",
    "losses_by_position",
    "mask_and_weights",
    "mask_grids",
    "memory_paths",
    "nan_by_layer",
    "number_grid",
    "number_tables",
    "packed_maps",
    "padded_rows",
    "partners",
    "perplexity_by_position",
    "piece_rows",
    "reference_of",
    "reordered",
    "running_softmax",
    "score_by_distance",
    "score_tables",
    "scores_by_call",
    "shares",
    "slowdowns",
    "spread_of_change",
    "subplots",
    "tiles_visited",
    "token_losses",
    "traffic",
    "turning_pair",
    "unpadding",
    "windows_by_layer",
]
