"""The pictures of the course. Each is drawn for one idea, and says in words what it shows."""

from minilm.table import Table
from minilm.viz.activations import bends, clouds, coloured_text, curves, gate_planes, neuron_values, neurons_at_work, root_mean_square, rounding_errors, size_in_size_out, stream_sizes, streams
from minilm.viz.attention import attention_maps, bytes_read, cache_bars, feature_rows, head_grids, scores_by_width, sharing, soft_lookup, softmax_errors, token_labels
from minilm.viz.cache import compare_caches, damage_by_position, filling, kinds_of_cache, reordered, scores_by_call
from minilm.viz.comparison import compare_part, differences, lines_of, reference_of
from minilm.viz.contexts import angles_by_position, angles_met, compare_scalings, losses_by_pair, perplexity_by_position, slowdowns
from minilm.viz.decoder import course_map, decoder_map
from minilm.viz.files import block_levels, file_map, first_bytes, result_map, row_origins
from minilm.viz.losses import losses_by_position, token_losses
from minilm.viz.masks import MaskGrid, mask_and_weights, mask_grids, nan_by_layer, spread_of_change, windows_by_layer
from minilm.viz.packing import batch_fill, compare_packed, packed_maps, unpadding
from minilm.viz.picture import Picture, explore, heat_map, subplots
from minilm.viz.rotary import clocks, partners, score_by_distance, score_tables, turning_pair
from minilm.viz.tiles import Traffic, alignments, compare_backends, running_softmax, shares, tiles_visited, traffic
from minilm.viz.tokens import float_bits, memory_paths, number_grid, number_tables, padded_rows, piece_rows

__all__ = [
    "MaskGrid",
    "Picture",
    "Table",
    "Traffic",
    "alignments",
    "angles_by_position",
    "angles_met",
    "attention_maps",
    "batch_fill",
    "bends",
    "block_levels",
    "bytes_read",
    "cache_bars",
    "clocks",
    "clouds",
    "coloured_text",
    "compare_backends",
    "compare_caches",
    "compare_packed",
    "compare_part",
    "compare_scalings",
    "course_map",
    "curves",
    "damage_by_position",
    "decoder_map",
    "differences",
    "explore",
    "feature_rows",
    "file_map",
    "filling",
    "first_bytes",
    "float_bits",
    "gate_planes",
    "head_grids",
    "heat_map",
    "kinds_of_cache",
    "lines_of",
    "losses_by_pair",
    "losses_by_position",
    "mask_and_weights",
    "mask_grids",
    "memory_paths",
    "nan_by_layer",
    "neuron_values",
    "neurons_at_work",
    "number_grid",
    "number_tables",
    "packed_maps",
    "padded_rows",
    "partners",
    "perplexity_by_position",
    "piece_rows",
    "reference_of",
    "reordered",
    "result_map",
    "root_mean_square",
    "rounding_errors",
    "row_origins",
    "running_softmax",
    "score_by_distance",
    "score_tables",
    "scores_by_call",
    "scores_by_width",
    "shares",
    "sharing",
    "size_in_size_out",
    "slowdowns",
    "soft_lookup",
    "softmax_errors",
    "spread_of_change",
    "stream_sizes",
    "streams",
    "subplots",
    "tiles_visited",
    "token_labels",
    "token_losses",
    "traffic",
    "turning_pair",
    "unpadding",
    "windows_by_layer",
]
