"""Cross-attention: equal to transformers' GPT-2, by weights mapped to BigCode's names; its cache; its errors.

BigCode's own cannot be the reference: it splits keys from values at one head's width and passes on no mask.
"""

import copy
import json

import pytest
import torch
import transformers
from reference import randomise
from safetensors.torch import load_file, save_file
from torch import nn

import minilm
from minilm import describe
from minilm.cross_attention import CrossAttention
from minilm.families import FAMILIES

BIGCODE = FAMILIES["gpt_bigcode"]
SIZES = {"vocab_size": 191, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64, "n_inner": 80}
LENGTHS = {"text": (7, 11, 9), "memory": (5, 8, 3)}  # real places of each row
# Where the projections are computed by another kernel than Conv1D's, sums are rounded in another order.
NOISE = 2e-5


def padding_mask(lengths: tuple[int, ...], side: str) -> torch.Tensor:
    """1 = real; "none" makes all rows as long as the longest."""
    longest = max(lengths)
    if side == "none":
        return torch.ones(len(lengths), longest, dtype=torch.long)
    places = torch.arange(longest)
    rows = [places < n if side == "right" else places >= longest - n for n in lengths]
    return torch.stack(rows).long()


class Inputs:
    """Ragged texts and ragged memories, each padded on a side of its own."""

    def __init__(self, text: str = "left", memory: str = "right", seed: int = 1):
        generator = torch.Generator().manual_seed(seed)
        self.mask, self.memory_mask = (
            padding_mask(LENGTHS[kind], side) for kind, side in (("text", text), ("memory", memory))
        )
        self.ids = torch.randint(1, SIZES["vocab_size"], self.mask.shape, generator=generator)
        self.memory = torch.randn(*self.memory_mask.shape, SIZES["n_embd"], generator=generator)

    @property
    def position_ids(self) -> torch.Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)


@pytest.fixture(scope="module")
def gpt2() -> nn.Module:
    """The reference, with parameters that hide nothing."""
    config = transformers.GPT2Config(
        **SIZES, add_cross_attention=True, bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    return randomise(transformers.GPT2LMHeadModel(config), 2).eval().requires_grad_(False)


def write_bigcode(gpt2: nn.Module, directory) -> None:
    """GPT-2's checkpoint as a BigCode one: matrices transposed, fused rows put in order of heads."""
    directory.mkdir(exist_ok=True)
    tensors = {}
    for name, value in gpt2.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and type(gpt2.get_submodule(module)).__name__ == "Conv1D":
            value = value.t()
        if ".attn.c_attn." in name:  # q, k and v in three blocks -> q, k and v of each head
            value = value.unflatten(0, (3, SIZES["n_head"], -1)).transpose(0, 1).flatten(0, 2)
        if name != "lm_head.weight":  # tied
            tensors[name] = value.contiguous()
    save_file(tensors, directory / "model.safetensors")
    config = SIZES | {"model_type": "gpt_bigcode", "multi_query": False, "add_cross_attention": True,
                      "activation_function": "gelu_new", "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def directory(gpt2, tmp_path_factory):
    path = tmp_path_factory.mktemp("cross") / "bigcode"
    write_bigcode(gpt2, path)
    return path


@pytest.fixture
def model(directory) -> minilm.CausalLM:
    return minilm.load(directory, backend="eager").requires_grad_(False)


def like_conv1d(gpt2: nn.Module, model: minilm.CausalLM) -> minilm.CausalLM:
    """The same model with its matrices laid out in memory as Conv1D's, so that one kernel serves both."""
    blocks = minilm.CausalLM(model.config.replace(qkv_layout="blocks"), backend="eager").eval()
    for name, parameter in list(blocks.named_parameters()):
        module, _, kind = name.rpartition(".")
        value = gpt2.get_parameter(BIGCODE.file_name(name))
        theirs = gpt2.get_submodule(BIGCODE.file_name(name).rpartition(".")[0])
        if kind == "weight" and type(theirs).__name__ == "Conv1D":
            value = value.t()
        assert value.shape == parameter.shape
        setattr(blocks.get_submodule(module), kind, nn.Parameter(value, requires_grad=False))
    return blocks


def expected_logits(gpt2: nn.Module, inputs: Inputs, pieces: tuple[int, ...] | None) -> torch.Tensor:
    """The reference's, in one shot (None) or in pieces through its cache."""
    cache, logits, start = None, [], 0
    for size in pieces or (inputs.ids.shape[1],):
        new = slice(start, start + size)
        out = gpt2(
            inputs.ids[:, new],
            attention_mask=inputs.mask[:, : start + size],
            position_ids=inputs.position_ids[:, new],
            encoder_hidden_states=inputs.memory,
            encoder_attention_mask=inputs.memory_mask,
            past_key_values=cache,
            use_cache=pieces is not None,
        )
        cache, start = out.past_key_values, start + size
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def found_logits(
    model: minilm.CausalLM, inputs: Inputs, pieces: tuple[int, ...] | None, cache=None
) -> torch.Tensor:
    """Ours; the memory is given to the first pass alone."""
    if pieces is not None and cache is None:
        cache = minilm.DynamicCache(model.config)
    logits, start = [], 0
    for size in pieces or (inputs.ids.shape[1],):
        new = slice(start, start + size)
        read = {"memory": inputs.memory, "memory_mask": inputs.memory_mask} if start == 0 else {}
        out = model(inputs.ids[:, new], attention_mask=inputs.mask[:, : start + size], cache=cache, **read)
        start += size
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


# ------------------------------------------------------------------------------------------------------------
# Parity

PIECES = {"one shot": None, "chunks": (4, 1, 6), "steps": (1,) * 11}


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("memory", ["none", "left", "right"])
@pytest.mark.parametrize("text", ["none", "left", "right"])
def test_equal_to_gpt2_bit_for_bit(gpt2, model, text, memory, pieces):
    """With matrices in Conv1D's layout every operation is the reference's."""
    inputs = Inputs(text, memory)
    expected = expected_logits(gpt2, inputs, PIECES[pieces])
    found = found_logits(like_conv1d(gpt2, model), inputs, PIECES[pieces])
    real = inputs.mask.bool()
    assert expected[real].abs().max() > 3
    assert torch.equal(found[real], expected[real])


@pytest.mark.parametrize("pieces", PIECES)
def test_equal_to_gpt2_in_bf16(gpt2, model, pieces):
    """Every rounding stands in the same place."""
    inputs = Inputs("left", "right")
    inputs.memory = inputs.memory.bfloat16()
    rounded = copy.deepcopy(gpt2).bfloat16()
    found = found_logits(like_conv1d(rounded, model), inputs, PIECES[pieces])
    expected = expected_logits(rounded, inputs, PIECES[pieces])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[inputs.mask.bool()], expected[inputs.mask.bool()])


def test_training_is_gpt2s(gpt2, model):
    """Dropout falls on the same numbers in the same order, and the memory gets the same gradient."""
    inputs, other = Inputs("right", "left"), Inputs("right", "left")
    theirs, ours = copy.deepcopy(gpt2).train(), like_conv1d(gpt2, model).train()
    real = inputs.mask.bool()
    inputs.memory.requires_grad_()
    torch.manual_seed(3)
    expected = expected_logits(theirs, inputs, None)[real]
    other.memory.requires_grad_()
    torch.manual_seed(3)
    found = found_logits(ours, other, None)[real]
    assert torch.equal(found, expected)
    assert (found - found_logits(ours.eval(), other, None)[real]).abs().max() > 1
    for logits in (expected, found):
        logits.pow(2).mean().backward()
    assert inputs.memory.grad.abs().max() > 1e-2
    assert (other.memory.grad - inputs.memory.grad).abs().max() <= NOISE


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize(("text", "memory"), [("none", "none"), ("left", "right"), ("right", "left")])
def test_a_checkpoint_of_bigcode_computes_what_gpt2_does(gpt2, model, text, memory, pieces, backend):
    """Loaded from files, matrices are contiguous, and Linear's kernel sums in another order than Conv1D's."""
    model.backend = backend
    inputs = Inputs(text, memory)
    expected = expected_logits(gpt2, inputs, PIECES[pieces])
    real = inputs.mask.bool()
    found = found_logits(model, inputs, PIECES[pieces])
    assert (found - expected)[real].abs().max() <= NOISE


def test_cross_attention_weights_are_returned(gpt2, model):
    """[batch, heads, query, memory] of each block; a model without a memory has none."""
    inputs = Inputs("none", "left")
    out = gpt2(
        inputs.ids,
        encoder_hidden_states=inputs.memory,
        encoder_attention_mask=inputs.memory_mask,
        output_attentions=True,
        use_cache=False,  # keys laid out anew by a cache would be multiplied by another kernel
    )
    found = like_conv1d(gpt2, model)(
        inputs.ids, memory=inputs.memory, memory_mask=inputs.memory_mask, output_attentions=True
    )
    for ours, theirs in ((found.attentions, out.attentions), (found.cross_attentions, out.cross_attentions)):
        assert len(ours) == len(theirs) == SIZES["n_layer"]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    unasked = model(inputs.ids, memory=inputs.memory, memory_mask=inputs.memory_mask)
    assert unasked.attentions is None and unasked.cross_attentions is None
    plain = minilm.CausalLM(BIGCODE.read_config(BIGCODE.tiny), backend="eager")
    assert plain(inputs.ids, output_attentions=True).cross_attentions is None


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("num_beams", [1, 5])  # of 3 prompts; 4 ≡ 1 (mod 3) would hide rows in wrong order
@pytest.mark.parametrize("memory", ["none", "left", "right"])
def test_generates_what_gpt2_generates(gpt2, model, memory, num_beams, cache):
    """Greedy and with beams, which each go on reading their own prompt's memory."""
    inputs = Inputs("left", memory)
    expected = gpt2.generate(
        inputs.ids,
        attention_mask=inputs.mask,
        encoder_hidden_states=inputs.memory,
        encoder_attention_mask=inputs.memory_mask,
        max_new_tokens=16,
        num_beams=num_beams,
        do_sample=False,
        pad_token_id=0,
    )
    read = {"memory": inputs.memory, "memory_mask": inputs.memory_mask}
    settings = {"max_new_tokens": 16, "num_beams": num_beams, "cache": cache, "pad_token_id": 0}
    found = minilm.generate(like_conv1d(gpt2, model), inputs.ids, inputs.mask, **settings, **read)
    assert torch.equal(found, expected)
    # The memory decides what is said: with the rows' memories exchanged the texts differ.
    other = {name: value.flip(0) for name, value in read.items()}
    assert not torch.equal(minilm.generate(model, inputs.ids, inputs.mask, **settings, **other), expected)


@pytest.mark.parametrize("n_head", [6, 1])
def test_the_reference_in_bigcode_is_broken(n_head):
    """The reason for GPT-2: multi-query is refused, and multi-head cannot be computed, not even one head."""
    tiny = BIGCODE.tiny | {"add_cross_attention": True}
    with pytest.raises(NotImplementedError):
        transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**tiny))
    config = transformers.AutoConfig.for_model(**tiny | {"n_head": n_head}, multi_query=False)
    multi_head = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises((RuntimeError, ValueError), match=r"split|unpack"):
        multi_head(torch.ones(1, 2, dtype=torch.long), encoder_hidden_states=torch.ones(1, 3, 48))


# ------------------------------------------------------------------------------------------------------------
# Heads that share keys, which transformers has not

HEADS = {"multi-head": 6, "grouped": 3, "multi-query": 1}


def structure(kv_heads: int, **changes) -> minilm.ModelConfig:
    config = BIGCODE.read_config(BIGCODE.tiny | {"add_cross_attention": True})
    return config.replace(num_kv_heads=kv_heads, **changes)


def make_model(kv_heads: int = 1, backend: str = "eager", **changes) -> minilm.CausalLM:
    model = randomise(minilm.CausalLM(structure(kv_heads, **changes), backend), 3)
    return model.eval().requires_grad_(False)


def one_head_at_a_time(module: CrossAttention, x, memory, real) -> torch.Tensor:
    """Cross-attention as a formula, for each row and head, with the places that are padding cut out."""
    heads, width = module.config.num_heads, module.config.head_dim
    shared = heads // module.config.num_kv_heads
    rows = []
    for text, states, keep in zip(x, memory, real.bool(), strict=True):
        query = text @ module.q_proj.weight.T + module.q_proj.bias
        both = states[keep] @ module.kv_proj.weight.T + module.kv_proj.bias
        keys, values = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
        mixed = []
        for head in range(heads):
            of_head = slice(head * width, (head + 1) * width)
            of_group = slice(head // shared * width, (head // shared + 1) * width)
            scores = query[:, of_head] @ keys[:, of_group].T / width**0.5
            mixed.append(scores.softmax(-1) @ values[:, of_group])
        rows.append(torch.cat(mixed, dim=1) @ module.o_proj.weight.T + module.o_proj.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("length", [5, 1])
@pytest.mark.parametrize("memory", ["none", "left", "right"])
@pytest.mark.parametrize("kv_heads", HEADS.values(), ids=HEADS)
def test_equal_to_the_formula(kv_heads, memory, length, backend):
    """What every block adds, against a loop over rows and heads."""
    model, inputs, seen = make_model(kv_heads, backend), Inputs("none", memory), []
    for block in model.decoder.layers:
        block.cross_norm.register_forward_hook(lambda _, args, out: seen.append([out]))
        block.cross_attention.register_forward_hook(lambda _, args, out: seen[-1].append(out[0]))
    model(inputs.ids[:, :length], memory=inputs.memory, memory_mask=inputs.memory_mask)
    assert len(seen) == 3
    for block, (x, found) in zip(model.decoder.layers, seen, strict=True):
        x, found = x.view(3, length, -1), found.view(3, length, -1)  # the flash backend packs its rows
        expected = one_head_at_a_time(block.cross_attention, x, inputs.memory, inputs.memory_mask)
        assert expected.abs().max() > 1
        assert (found - expected).abs().max() <= NOISE


def test_heads_need_not_add_up_to_the_stream():
    """Six heads of five dimensions in a stream of 48; and biases only where the config has them."""
    module = CrossAttention(structure(3, head_dim=5, qkv_bias=False, out_bias=True), 0).requires_grad_(False)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {
        "q_proj.weight": (30, 48),
        "kv_proj.weight": (2 * 15, 48),
        "o_proj.weight": (48, 30),
        "o_proj.bias": (48,),
    }
    assert CrossAttention(structure(3, out_bias=False), 0).o_proj.bias is None


@pytest.mark.parametrize("kv_heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("rope", [None, minilm.RopeConfig()], ids=["learned positions", "rope"])
def test_a_memory_has_no_order(kv_heads, rope):
    """Its places may be exchanged, and padding may stand anywhere among them: each token sees all of it."""
    model, inputs = make_model(kv_heads, rope=rope), Inputs("left", "none")
    places = torch.randperm(8)
    logits = found_logits(model, inputs, None)
    inputs.memory = inputs.memory[:, places]
    assert (found_logits(model, inputs, None) - logits).abs().max() <= NOISE
    inputs.memory = torch.cat(
        (inputs.memory[:, :3], torch.full((3, 2, 48), 1e3), inputs.memory[:, 3:]), dim=1
    )
    inputs.memory_mask = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1, 1]).expand(3, -1)
    assert (found_logits(model, inputs, None) - logits).abs().max() <= NOISE
    inputs.memory_mask = torch.ones_like(inputs.memory_mask)
    assert (found_logits(model, inputs, None) - logits).abs().max() > 0.1


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("kv_heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("memory", ["left", "right"])
def test_rows_do_not_mix(kv_heads, memory, backend):
    """A batch is its rows one by one, without their padding; with every backend."""
    model, inputs = make_model(kv_heads, backend), Inputs("left", memory)
    logits = found_logits(model, inputs, None)
    for row, (text, states) in enumerate(zip(inputs.mask.bool(), inputs.memory_mask.bool(), strict=True)):
        alone = model(inputs.ids[row, text][None], memory=inputs.memory[row, states][None]).logits[0]
        assert (logits[row, text] - alone).abs().max() <= NOISE


# ------------------------------------------------------------------------------------------------------------
# Memories that are all padding, and gradients


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("kv_heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("real", [[0, 5, 0], [0, 0, 0]], ids=["two rows", "all rows"])
@pytest.mark.parametrize("text", ["none", "left"])
def test_a_memory_of_padding_gives_zero(kv_heads, real, text, backend):
    """Not NaN, forward or backward: such a row reads as if the values were 0, and hears no gradient."""
    model = make_model(kv_heads, backend).requires_grad_()
    inputs = Inputs(text, "none")
    first = int(inputs.mask[0].sum())
    inputs.memory_mask = torch.arange(8)[None] < torch.tensor(real)[:, None]
    inputs.memory.requires_grad_()
    contexts = []
    for block in model.decoder.layers:
        block.cross_attention.o_proj.register_forward_pre_hook(lambda _, args: contexts.append(args[0]))
    logits = model(
        inputs.ids, attention_mask=inputs.mask, memory=inputs.memory, memory_mask=inputs.memory_mask
    ).logits
    for context in contexts:
        if backend == "flash":  # packed: row 0 comes first, with its real tokens, and 11 of row 1 follow
            assert not context[0, :first].any() and not context[0, first + 11 :].any()
            assert context[0, first : first + 11].any() == bool(real[1])
        else:
            assert not context[0].any() and not context[2].any()
            assert context[1].any() == bool(real[1])
    logits[inputs.mask.bool()].sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    gradient = inputs.memory.grad
    assert gradient.isfinite().all()
    assert not gradient[~inputs.memory_mask].any()
    assert gradient[inputs.memory_mask].all()


def test_backends_have_one_gradient():
    """Of the memory, and of the three projections."""
    gradients = {}
    for backend in ("eager", "sdpa", "flash"):
        model, inputs = make_model(3, backend).requires_grad_(), Inputs("right", "left")
        inputs.memory.requires_grad_()
        out = model(
            inputs.ids, attention_mask=inputs.mask, memory=inputs.memory, memory_mask=inputs.memory_mask
        )
        out.logits[inputs.mask.bool()].pow(2).mean().backward()
        parameters = [p for name, p in model.named_parameters() if "cross_attention" in name]
        gradients[backend] = [inputs.memory.grad, *(parameter.grad for parameter in parameters)]
        assert len(gradients[backend]) == 1 + 3 * 6
    for backend in ("sdpa", "flash"):
        for found, expected in zip(gradients[backend], gradients["eager"], strict=True):
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------
# The cache


def make_cache(kind: str, config: minilm.ModelConfig, rows: int = 3):
    return minilm.StaticCache(config, rows, 32) if kind == "static" else minilm.DynamicCache(config)


@pytest.fixture
def projections(monkeypatch) -> list[int]:
    """Counts how often a block has projected a memory."""
    counted, project = [], CrossAttention.project

    def counting(self, memory):
        counted.append(memory.shape[0])
        return project(self, memory)

    monkeypatch.setattr(CrossAttention, "project", counting)
    return counted


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
def test_a_memory_is_projected_once(projections, kind, backend):
    """Once per block for the whole text, and steps give what one shot does."""
    model, inputs = make_model(3, backend), Inputs("left", "right")
    expected = found_logits(model, inputs, None)
    projections.clear()
    found = found_logits(model, inputs, (1,) * 11, make_cache(kind, model.config))
    assert projections == [3] * 3
    assert (found - expected)[inputs.mask.bool()].abs().max() <= NOISE


@pytest.mark.parametrize(("settings", "rows"), [
    ({}, 3), ({"do_sample": True}, 3), ({"num_beams": 4}, 3), ({"num_beams": 4, "cache": "static"}, 3),
])  # fmt: skip
def test_generating_projects_a_memory_once(projections, settings, rows):
    """Beams too: they repeat what was projected for their prompt."""
    inputs = Inputs("left", "right")
    minilm.generate(
        make_model(),
        inputs.ids,
        inputs.mask,
        memory=inputs.memory,
        memory_mask=inputs.memory_mask,
        **settings,
    )
    assert projections == [rows] * 3


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_a_cache_does_with_its_memory(kind):
    """crop leaves it, select reorders its rows with the others, reset forgets it."""
    model, inputs = make_model(3), Inputs("none", "right")
    cache = make_cache(kind, model.config)
    logits = found_logits(model, inputs, (8, 3), cache)
    cache.crop(8)
    again = model(inputs.ids[:, 8:], cache=cache).logits
    assert torch.equal(again, logits[:, 8:])

    cache.crop(8)
    rows = torch.tensor([2, 0, 0])
    cache.select(rows)
    selected = model(inputs.ids[rows, 8:], cache=cache).logits
    assert (selected - logits[rows, 8:]).abs().max() <= NOISE
    assert (selected - logits[:, 8:]).abs().max() > 0.1

    cache.reset()
    assert cache.memory is None
    with pytest.raises(ValueError, match="give memory"):
        model(inputs.ids, cache=cache)
    other = Inputs("none", "left", seed=5)
    assert torch.equal(found_logits(model, other, (8, 3), cache), found_logits(model, other, (8, 3)))


def test_repeated_rows_repeat_their_memory():
    """Also when nothing but the memory has been read yet."""
    model, inputs = make_model(3), Inputs("none", "right")
    cache = minilm.DynamicCache(model.config)
    logits = found_logits(model, inputs, (8, 3), cache)
    cache.crop(8)
    cache.repeat(2)
    repeated = model(inputs.ids[:, 8:].repeat_interleave(2, dim=0), cache=cache).logits
    assert (repeated - logits[:, 8:].repeat_interleave(2, dim=0)).abs().max() <= NOISE

    held = cache.memory
    cache = minilm.DynamicCache(model.config)
    cache.memory = held
    cache.repeat(2)
    assert cache.memory.real.shape == (12, 8)


def test_going_back_behind_a_window_keeps_the_memory():
    """Layers that slide may have to read a text again, but a memory is given only once."""
    model, inputs = make_model(3, layer_windows=(4, None, 4)), Inputs("none", "right")
    cache = minilm.DynamicCache(model.config)
    logits = found_logits(model, inputs, (8, 3), cache)
    assert cache.go_back(2) == 0
    assert (model(inputs.ids, cache=cache).logits - logits).abs().max() <= NOISE


def test_the_size_of_a_cache_counts_its_memory():
    model, inputs = make_model(3), Inputs("none", "none")
    cache = minilm.DynamicCache(model.config)
    minilm.cross_attention.read_memory(model.decoder, inputs.memory, None, cache, 3)
    assert cache.nbytes == 3 * 2 * (3 * 3 * 8 * 8) * 4  # layers, k and v, rows · heads · places · width, fp32


# ------------------------------------------------------------------------------------------------------------
# Generating


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
def test_generating_reads_the_memory_at_every_step(backend):
    """The same tokens as by choosing the best of a whole pass each time, without a cache."""
    model, inputs = make_model(3, backend), Inputs("left", "right")
    read = {"memory": inputs.memory, "memory_mask": inputs.memory_mask}
    ids, mask = inputs.ids, inputs.mask
    for _ in range(10):
        best = model(ids, attention_mask=mask, **read).logits[:, -1:].argmax(-1)
        ids, mask = torch.cat((ids, best), dim=1), torch.cat((mask, torch.ones_like(best)), dim=1)
    found = minilm.generate(model, inputs.ids, inputs.mask, 10, eos_token_id=[], **read)
    assert torch.equal(found, ids)


def test_guessing_ahead_and_going_on_with_a_conversation():
    """Both go on with the memory in the cache: the second call is given none."""
    model, inputs = make_model(3), Inputs("none", "right")
    ids, memory = inputs.ids[:1].repeat(1, 2), inputs.memory[:1]
    expected = minilm.generate(model, ids, max_new_tokens=12, eos_token_id=[], memory=memory)
    guessed = minilm.generate(model, ids, max_new_tokens=12, eos_token_id=[], memory=memory, draft="lookup")
    assert torch.equal(guessed, expected)
    cache = minilm.DynamicCache(model.config)
    half = minilm.generate(model, ids, max_new_tokens=6, eos_token_id=[], memory=memory, cache=cache)
    assert torch.equal(minilm.generate(model, half, max_new_tokens=6, eos_token_id=[], cache=cache), expected)


# ------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("kv_heads", [6, 1])
def test_saving_and_loading_keep_bits(tmp_path, kv_heads):
    layout = "per_head" if kv_heads == 6 else "blocks"
    model, inputs = make_model(kv_heads, qkv_layout=layout), Inputs()
    model.family = "gpt_bigcode"
    minilm.save(model, tmp_path)
    again = minilm.load(tmp_path, backend="eager")
    assert again.config == model.config and again.config.cross_attention
    minilm.save(again, tmp_path / "again")
    first, second = (load_file(path / "model.safetensors") for path in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(found_logits(again, inputs, None), found_logits(model, inputs, None))


def test_transformers_has_the_same_names_and_shapes(directory, tmp_path):
    """A saved multi-head model is what transformers' BigCode would load, were it able to compute it."""
    minilm.save(minilm.load(directory), tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(theirs.get_parameter(name), value)


def test_old_mask_buffers_are_ignored(directory, tmp_path):
    tensors = load_file(directory / "model.safetensors")
    tensors["transformer.h.0.crossattention.bias"] = torch.ones(1, 1, 64, 64)
    tensors["transformer.h.0.crossattention.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    minilm.load(tmp_path)


def test_other_families_have_no_words_for_it():
    config = structure(1, rope=minilm.RopeConfig())
    for name in FAMILIES.keys() - {"gpt_bigcode"}:
        with pytest.raises(minilm.ConfigError):
            FAMILIES[name].write_config(config)


def test_sizes_count_it(model):
    """Parameters by part; a step's arithmetic leaves out the memory, which is projected once."""
    parts, total = describe.parameter_counts(model.config), sum(p.numel() for p in model.parameters())
    assert sum(parts.values()) == total
    assert parts["output head"] == 0
    plain = model.config.replace(cross_attention=False)
    more = parts["attention"] - describe.parameter_counts(plain)["attention"]
    assert more == 3 * (4 * 48 * 48 + 4 * 48)
    step = describe.flops_per_token(model.config, 1) - describe.flops_per_token(plain, 1)
    assert step == 3 * 2 * (2 * 48 * 48)  # q_proj and o_proj of three blocks


# ------------------------------------------------------------------------------------------------------------
# What is refused

IDS, MEMORY = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4, 48)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"this model has cross-attention; give memory .* = \(2, any, 48\)"),
        ({"memory_mask": torch.ones(2, 4)}, "give memory"),
        ({"memory": torch.ones(2, 4, 47)}, r"memory is \(2, 4, 47\); it must be .* = \(2, 1 or more, 48\)"),
        ({"memory": torch.ones(3, 4, 48)}, r"memory is \(3, 4, 48\)"),
        ({"memory": torch.ones(4, 48)}, r"memory is \(4, 48\)"),
        ({"memory": torch.ones(2, 0, 48)}, r"memory is \(2, 0, 48\)"),
        ({"memory": MEMORY.double()}, r"memory is torch.float64 .* convert it with \.to\(torch.float32\)"),
        (
            {"memory": MEMORY, "memory_mask": torch.ones(2, 3)},
            r"memory_mask is \(2, 3\); it must be .* = \(2, 4\)",
        ),
        ({"memory": MEMORY, "memory_mask": torch.ones(2, 1, 1, 4)}, r"memory_mask is \(2, 1, 1, 4\)"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(given, message):
    model = make_model()
    cache = minilm.DynamicCache(model.config)
    for call in (lambda: model(IDS, cache=cache, **given), lambda: minilm.generate(model, IDS, **given)):
        with pytest.raises(ValueError, match=message):
            call()
    assert cache.memory is None


def test_a_model_without_cross_attention_refuses_a_memory():
    model = minilm.CausalLM(BIGCODE.read_config(BIGCODE.tiny))
    for given in ({"memory": MEMORY}, {"memory_mask": torch.ones(2, 4)}):
        with pytest.raises(ValueError, match="a model without cross-attention"):
            model(IDS, **given)
        with pytest.raises(ValueError, match="a model without cross-attention"):
            minilm.generate(model, IDS, **given)
    filled, other = minilm.DynamicCache(model.config), make_model()
    other(IDS, memory=MEMORY, cache=filled)
    with pytest.raises(ValueError, match="a model without cross-attention"):
        model(IDS, cache=filled)


def test_a_filled_cache_refuses_another_memory_and_other_rows():
    model = make_model()
    cache = minilm.DynamicCache(model.config)
    model(IDS, memory=MEMORY, cache=cache)
    for given in ({"memory": MEMORY}, {"memory_mask": torch.ones(2, 4)}):
        with pytest.raises(ValueError, match="the cache holds a memory already"):
            model(IDS, cache=cache, **given)
    with pytest.raises(ValueError, match="the cache holds a memory for 2 rows and 1 were given"):
        model(IDS[:1], cache=cache)


def test_structures_and_settings_that_cannot_be():
    with pytest.raises(minilm.ConfigError, match="residual cannot be 'parallel'"):
        structure(1, residual="parallel")
    with pytest.raises(ValueError, match="leave compile=False"):
        minilm.generate(make_model(), IDS, memory=MEMORY, compile=True)
