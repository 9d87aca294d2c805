"""Known mistakes that leave a model what it was, and why. The exercise's own check sees them."""

ROUNDING = (
    "in fp32 it is right, and in half precision it rounds once more or once less; a right answer may differ "
    "by rounding as well, so parity allows it"
)
LARGE_SCORES = "scores and activations of these models stay far below 88, where exp overflows in fp32"
EMPTY_ROWS = "only padding sees no key, and what is computed at padding is read by nobody"
ONLY_GRADIENTS = (
    "its values are right and only gradients are wrong; parity runs models and does not train them"
)
SOFTMAX_OF_LOW = "a score that is thousands lower than the others has the weight 0, as it should"
LSE = "out is right; lse is read only where two parts of the keys are merged, which is exercise 11.2"
NAMES = "in the tables of names here no rule is a part of another, and each parameter fits one rule alone"
TRACES = "the traces of one model with itself have no such place"

HIDDEN: dict[tuple[str, str], str] = {
    ("2.2", "zero at padding"): "what stands at padding is seen by nobody, so its position is of no account",
    ("2.2", "one at padding"): "what stands at padding is seen by nobody, so its position is of no account",
    ("2.3", "scale not rounded"): ROUNDING,
    ("3.1", "all in x's dtype"): ROUNDING,
    ("3.2", "all in x's dtype"): ROUNDING,
    ("3.2", "rounded after the weight"): ROUNDING,
    ("3.3", "rounded before the weight"): ROUNDING,
    ("3.3", "1 added before fp32"): ROUNDING,
    ("3.3", "all in x's dtype"): ROUNDING,
    ("3.3", "eps outside the root"): (
        "eps is 1e-6 beside means of squares near 1: in either place it is no more than rounding"
    ),
    ("4.1", "all in x's dtype"): ROUNDING,
    ("4.2", "exp overflows"): LARGE_SCORES,
    ("4.2", "the formula as it stands"): ROUNDING,
    ("4.2", "inf / inf"): LARGE_SCORES,
    ("4.2", "all in x's dtype"): ROUNDING,
    ("5.2", "frequencies in half precision"): (
        "every pair turns faster or slower by up to 0.4 %, for queries and keys alike; over the few "
        "tokens between them that is less than the rounding of bf16"
    ),
    ("6.2", "short texts changed"): (
        "this model's text is longer than what it was trained for from its first pass on"
    ),
    ("7.1", "no maximum"): LARGE_SCORES,
    ("7.1", "one maximum for all rows"): LARGE_SCORES,
    ("7.1", "in the scores' dtype"): ROUNDING,
    ("7.1", "cast too late"): ROUNDING,
    ("7.2", "mean for empty rows"): EMPTY_ROWS,
    ("7.2", "nan in the gradients"): ONLY_GRADIENTS,
    ("8.3", "mean for empty rows"): EMPTY_ROWS,
    ("9.3", "padded queries too"): EMPTY_ROWS,
    ("9.3", "numbers for booleans"): (
        "its place joins the result with booleans or adds it, and 0 and 1 serve as False and True there"
    ),
    ("9.4", "minus infinity"): "the eager backend lifts -inf to the lowest finite number after adding it",
    ("9.4", "minus ten thousand"): SOFTMAX_OF_LOW,
    ("9.4", "minus a billion"): SOFTMAX_OF_LOW,
    ("9.4", "lowest number of fp32"): (
        "the eager backend lifts -inf to the lowest finite number after adding it"
    ),
    ("9.4", "always fp32"): ROUNDING,
    ("9.5", "first row for all"): (
        "places in the padded batch are the same for all rows, so one row is all there is"
    ),
    ("10.3", "minus zero"): "no model here has a window of 1",
    ("10.5", "no cache"): "it writes the same text, only slower",
    ("10.5", "prompt's cache alone"): (
        "this package's cache is one object that grows, so the first one is the last one"
    ),
    ("10.5", "one call too many"): "it writes the same text, with one call that nobody needs",
    ("11.3", "lse without the peak"): LSE,
    ("11.3", "nan for empty rows"): EMPTY_ROWS,
    ("11.3", "0/0 for empty rows"): EMPTY_ROWS,
    ("11.3", "mean for empty rows"): EMPTY_ROWS,
    ("11.3", "lse in half precision"): LSE,
    ("11.3", "scores in half precision"): ROUNDING,
    ("12.1", "longest with padding"): (
        "on a CPU nothing is allocated by the longest row; a kernel on a GPU would only work more"
    ),
    ("12.1", "total for longest"): (
        "on a CPU nothing is allocated by the longest row; a kernel on a GPU would only work more"
    ),
    ("12.4", "nan for empty rows"): EMPTY_ROWS,
    ("12.5", "int32"): "torch looks rows of a table up by int32 as well as by int64",
    ("13.1", "written into x"): (
        "nobody reads the block's input again; with gradients, or hidden states kept, it would show"
    ),
    ("14.1", "characters counted"): "the names of these tensors are ASCII, of one byte a character",
    ("14.2", "beginning of a name"): NAMES,
    ("14.2", "rules in a chain"): NAMES,
    ("14.2", "replaced anywhere"): NAMES,
    ("14.2", "one digit"): (
        "the small models have fewer than ten layers; SmolLM2 has thirty, and cannot be loaded with it"
    ),
    ("14.2", "dots for anything"): NAMES,
    ("14.3", "mean difference"): TRACES,
    ("14.3", "equal infinities differ"): TRACES,
    ("14.3", "shapes not compared"): TRACES,
    ("14.3", "missing is different"): TRACES,
    ("14.3", "subtracted in bf16"): TRACES,
    ("15.1", "ties dropped"): "no two logits of these models are equal",
    ("15.1", "small vocabulary"): "no k is larger than the vocabulary of these models",
    ("15.2", "summed in half precision"): "tokens are chosen from fp32 logits",
    ("16.1", "before the first pad"): (
        "an index of -1 is the last place, where a text padded on the left ends"
    ),
    ("16.1", "end of an empty row"): "no row is without a real token",
    ("16.2", "log of a probability"): (
        "the logits of these models are small, and no probability is rounded to 0"
    ),
    ("17.1", "half precision"): ROUNDING,
    ("17.1", "exponentials overflow"): LARGE_SCORES,
}  # fmt: skip
