"""What checks the exercises of notebook 21, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(21, "many_devices_lab")

# --------------------------------------------------------------------------------------------------
# 21.1

column_parallel = UNIT.exercise(
    "column_parallel",
    minutes=10,
    difficulty=1,
    hints=(
        "Which rows of W does the first output of x · Wᵀ need? Which inputs?",
        "Each device multiplies the whole x with its own rows. Nothing has to be put together.",
        "One product for each shard, x @ shard.T, in a list.",
    ),
)


def cut(draw, outputs, inputs, dtype=torch.float32):
    """Shards [out, inputs] of a matrix, with so many outputs each."""
    return [draw.normal(out, inputs, dtype=dtype) for out in outputs]


@column_parallel.inputs
def _(draw):
    example = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0]])]
    yield Case((torch.tensor([1.0, 2.0]), example), "the example")
    for dtype in (torch.float32, torch.bfloat16):
        yield Case((draw.normal(2, 3, 5, dtype=dtype), cut(draw, (4, 4), 5, dtype)), f"two devices, {dtype}")
    yield Case((draw.normal(3, 4), cut(draw, (4, 4, 4), 4)), "square shards on three devices")
    yield Case((draw.normal(2, 3, 5), cut(draw, (3, 1, 2), 5)), "shards of different sizes", gradient=True)
    yield Case((draw.normal(2, 6), cut(draw, (5,), 6)), "one device")
    yield Case((draw.normal(2, 6), cut(draw, (5, 5), 3)), refused="the matrix is cut along its inputs")
    yield Case((draw.normal(2, 6), []), refused="there is no shard")


@column_parallel.law("side by side, the parts are what one device computes")
def _(answer, draw):
    x, matrix = draw.normal(2, 3, 5), draw.normal(7, 5)
    for sizes in ((7,), (3, 4), (2, 1, 4)):
        apart = (torch.cat(list(answer(x, list(matrix.split(sizes)))), dim=-1) - x @ matrix.T).abs().max()
        assert apart < 1e-5, f"With {sizes} outputs on the devices, the result differs by up to {apart:.2g}."


@column_parallel.law("a device's part does not depend on the other devices")
def _(answer, draw):
    x, shards, others = draw.normal(2, 5), cut(draw, (3, 2), 5), cut(draw, (3, 2), 5)
    apart = (answer(x, shards)[0] - answer(x, [shards[0], others[1]])[0]).abs().max()
    assert apart < 1e-5, "Another matrix on device 1 changes the part of device 0."


def products(x, weight_shards):
    """What each device computes."""
    return [x @ shard.T for shard in weight_shards]


@column_parallel.mistake(
    "summed",
    "You add up the parts of the devices. They are different outputs, and not terms of one sum.",
    "It is what row_parallel does. With equal shards even the shape looks like that of one device.",
    "notebook 21, Column parallel by hand",
)
def _(x, weight_shards):
    return sum(products(x, weight_shards))


@column_parallel.mistake(
    "put together",
    "You return one tensor, all parts side by side. They are to stay where they are: a list, one per device.",
    "In a cluster this is an all-gather in every layer: time for communication that the next layer does not "
    "need.",
    "notebook 21, Column parallel by hand",
)
def _(x, weight_shards):
    return torch.cat(products(x, weight_shards), dim=-1)


@column_parallel.mistake(
    "everything everywhere",
    "Every device gets all outputs: you put the parts together and hand them to all of them.",
    "Row-parallel's matrix takes only a device's own part; and sending all of it costs what was to be saved.",
    "notebook 21, Column parallel by hand",
)
def _(x, weight_shards):
    whole = torch.cat(products(x, weight_shards), dim=-1)
    return [whole for _ in weight_shards]


@column_parallel.mistake(
    "matrix not transposed",
    "You compute x @ shard. torch stores [outputs, inputs], so the product is x @ shard.T.",
    "With square shards nothing fails, and every value is wrong.",
    "notebook 01, Products",
)
def _(x, weight_shards):
    return [x @ shard for shard in weight_shards]


@column_parallel.mistake(
    "first device only",
    "You compute the first device's part alone.",
    "A process computes its own part only; here the list stands for all of them.",
    "notebook 21, Column parallel by hand",
)
def _(x, weight_shards):
    return products(x, weight_shards)[:1]


@column_parallel.mistake(
    "x cut as well",
    "You cut x into as many parts as there are devices. Every device needs all of its inputs.",
    "Cutting inputs is for row_parallel. Here the shapes fit only where every device has all inputs.",
    "notebook 21, Row parallel by hand",
)
def _(x, weight_shards):
    return [
        part @ shard.T
        for part, shard in zip(x.tensor_split(len(weight_shards), dim=-1), weight_shards, strict=True)
    ]


# --------------------------------------------------------------------------------------------------
# 21.2

row_parallel = UNIT.exercise(
    "row_parallel",
    minutes=10,
    difficulty=1,
    hints=(
        "An output is a sum over all inputs. Which part of the sum can a device compute?",
        "Each device multiplies its inputs with its columns; all results have the full width. What is "
        "missing?",
        "The sum of x @ shard.T over the pairs of zip(x_shards, weight_shards).",
    ),
)


def rows(draw, shape, inputs, outputs, dtype=torch.float32):
    """For each device its inputs, and the columns that belong to them."""
    x_shards = [draw.normal(*shape, size, dtype=dtype) for size in inputs]
    return x_shards, [draw.normal(outputs, size, dtype=dtype) for size in inputs]


@row_parallel.inputs
def _(draw):
    example = [torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [4.0]])]
    yield Case(([torch.tensor([1.0]), torch.tensor([2.0])], example), "the example")
    for dtype in (torch.float32, torch.bfloat16):
        yield Case(rows(draw, (2, 3), (4, 4), 5, dtype), f"two devices, {dtype}")
    yield Case(rows(draw, (3,), (4, 4, 4), 4), "square shards on three devices")
    yield Case(rows(draw, (2, 3), (3, 1, 2), 4), "shards of different sizes", gradient=True)
    yield Case(rows(draw, (2,), (5,), 3), "one device")
    x_shards, weight_shards = rows(draw, (2,), (3, 3), 4)
    yield Case(
        (x_shards, weight_shards[:1]), refused="two devices with inputs, one with a part of the matrix"
    )


@row_parallel.law("the devices together compute what one device computes")
def _(answer, draw):
    x, matrix = draw.normal(2, 3, 7), draw.normal(4, 7)
    for sizes in ((7,), (3, 4), (2, 1, 4)):
        found = answer(list(x.split(sizes, dim=-1)), list(matrix.split(sizes, dim=-1)))
        apart = (found - x @ matrix.T).abs().max()
        assert apart < 1e-5, f"With {sizes} inputs on the devices, the result differs by up to {apart:.2g}."


@row_parallel.law("an MLP cut over devices needs one sum, at its end")
def _(answer, draw):
    x, up, down = draw.normal(2, 5), draw.normal(6, 5), draw.normal(5, 6)
    inner = [(x @ shard.T).relu() for shard in up.split((2, 4))]
    apart = (answer(inner, list(down.split((2, 4), dim=-1))) - (x @ up.T).relu() @ down.T).abs().max()
    assert apart < 1e-4, f"Two devices differ from one by up to {apart:.2g}."


def partial_sums(x_shards, weight_shards):
    """What each device computes before the devices talk."""
    if len(x_shards) != len(weight_shards):
        raise ValueError
    return [x @ shard.T for x, shard in zip(x_shards, weight_shards, strict=True)]


@row_parallel.mistake(
    "missing all-reduce",
    "You return what device 0 computes. The terms of the other devices are missing.",
    "The shape is right. With two devices about half of every sum is lost, and the devices go on with "
    "different states.",
    "notebook 21, Break it",
)
def _(x_shards, weight_shards):
    return partial_sums(x_shards, weight_shards)[0]


@row_parallel.mistake(
    "not added up",
    "You return the partial sums as a list. The devices still have to add them up.",
    "The next norm needs the whole sum: the norm of a sum is not the sum of norms.",
    "notebook 21, Row parallel by hand",
)
def _(x_shards, weight_shards):
    return partial_sums(x_shards, weight_shards)


@row_parallel.mistake(
    "mean",
    "You take the mean of the partial sums: the result is divided by the number of devices.",
    "Gradients of data parallelism are averaged; here every device has different terms of one sum.",
    "notebook 21, Row parallel by hand",
)
def _(x_shards, weight_shards):
    return torch.stack(partial_sums(x_shards, weight_shards)).mean(0)


@row_parallel.mistake(
    "side by side",
    "You put the partial results side by side. They are terms of the same outputs, and have to be added.",
    "Putting together is for column_parallel, whose devices have different outputs.",
    "notebook 21, Column parallel by hand",
)
def _(x_shards, weight_shards):
    return torch.cat(partial_sums(x_shards, weight_shards), dim=-1)


@row_parallel.mistake(
    "device 0's inputs for all",
    "Every device multiplies the inputs of device 0. Each has inputs of its own.",
    "With shards of one size nothing fails: an index that stays 0, or a broadcast too many.",
    "notebook 21, Row parallel by hand",
)
def _(x_shards, weight_shards):
    return sum(x_shards[0] @ shard.T for shard in weight_shards)


@row_parallel.mistake(
    "matrix not transposed",
    "You compute x @ shard. torch stores [outputs, inputs], so the product is x @ shard.T.",
    "With square shards nothing fails, and every value is wrong.",
    "notebook 01, Products",
)
def _(x_shards, weight_shards):
    return sum(x @ shard for x, shard in zip(x_shards, weight_shards, strict=True))
