"""Task heads: transformers' logits, losses and gradients; what it does not have is checked by hand."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from reference import randomise
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import minilm
from minilm import loss, pooling
from minilm.checkpoint import CheckpointError
from minilm.config import ConfigError
from minilm.families import FAMILIES
from minilm.heads import TASKS
from minilm.model import Decoder
from minilm.parity import make_batch

AUTO = {
    "causal-lm": transformers.AutoModelForCausalLM,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}
HEADS = [task for task in AUTO if task != "causal-lm"]
# transformers has no question answering for these; what a file of theirs would call the trunk
WITHOUT_ANSWERS = {"gemma": "model", "gpt_bigcode": "transformer"}
CELLS = [(family, task) for family in FAMILIES for task in AUTO]
SHARED_CELLS = [
    (family, task)
    for family, task in CELLS
    if not (family in WITHOUT_ANSWERS and task == "question-answering")
]
DTYPES = [torch.float32, torch.bfloat16]
PAD = 3  # an id that no text here holds: the reference looks for padding by id alone
NAMES = {0: "low", 1: "middle", 2: "high"}


class SpanReference(nn.Module):
    """Question answering in a few lines, on a trunk of transformers."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.config = trunk, trunk.config
        self.qa_outputs = nn.Linear(trunk.config.hidden_size, 2, dtype=trunk.dtype)

    def get_input_embeddings(self):
        return self.trunk.get_input_embeddings()

    def forward(self, input_ids, *, start_positions=None, end_positions=None, **inputs):
        logits = self.qa_outputs(self.trunk(input_ids, **inputs).last_hidden_state)
        start, end = logits[..., 0], logits[..., 1]
        if start_positions is None:
            return SimpleNamespace(start_logits=start, end_logits=end)
        sides = []
        for side, positions in ((start, start_positions), (end, end_positions)):
            inside = [(row, place) for row, place in enumerate(positions.tolist()) if place < side.shape[1]]
            terms = [-side[row].log_softmax(-1)[place] for row, place in inside]
            sides.append(sum(terms) / len(terms))
        return SimpleNamespace(start_logits=start, end_logits=end, loss=sum(sides) / 2)


def make_reference(family, task, directory, dtype=torch.float32, seed=0, **changes):
    """A randomised model of transformers, written to a directory and loaded back."""
    values = {"pad_token_id": PAD, "id2label": NAMES, "label2id": {v: k for k, v in NAMES.items()}, **changes}
    config = transformers.AutoConfig.for_model(**{**FAMILIES[family].tiny, **values})
    if (family, task) in SHARED_CELLS:
        model = randomise(AUTO[task].from_config(config, attn_implementation="eager"), seed)
        model.to(dtype).save_pretrained(directory)
        return load_reference(task, directory)
    randomise(transformers.AutoModel.from_config(config), seed).to(dtype).save_pretrained(directory)
    trunk = transformers.AutoModel.from_pretrained(directory, dtype="auto", attn_implementation="eager")
    model = SpanReference(trunk)
    randomise(model.qa_outputs, seed)
    names = {"trunk": WITHOUT_ANSWERS[family], "qa_outputs": "qa_outputs"}
    state = {
        names[name.split(".")[0]] + name[name.index(".") :]: value for name, value in model.named_parameters()
    }
    save_file(state, directory / "model.safetensors")
    rewrite(directory, architectures=[type(trunk).__name__.replace("Model", "ForQuestionAnswering")])
    return model.eval()


def load_reference(task, directory):
    return AUTO[task].from_pretrained(directory, dtype="auto", attn_implementation="eager").eval()


def rewrite(directory, change=lambda tensors: None, **config_changes):
    """Edit a checkpoint's tensors and its config.json."""
    path = directory / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    values = json.loads((directory / "config.json").read_text()) | config_changes
    (directory / "config.json").write_text(json.dumps(values))


def make_inputs(model, padding):
    """Ragged rows without the pad id in their text, and the positions that the reference needs."""
    batch = make_batch(model.config.vocab_size, padding)
    ids = torch.where(batch.input_ids == PAD, PAD + 1, batch.input_ids)
    ids = torch.where(batch.mask.bool(), ids, PAD)
    return {"input_ids": ids, "attention_mask": batch.mask}, batch.position_ids


def run_both(ours, reference, inputs, positions, labels):
    """Both models' outputs. A span loss reads the logits at padding too, so those must be defined.

    Padding that stands on the left, or farther right than a window reaches, sees nothing, and what it gets
    then is each implementation's own choice (of transformers' eager and sdpa as well). So spans get a 4-D
    mask there, in which padding sees itself.
    """
    mask = inputs["attention_mask"].bool()
    sees_text = mask[:, 0].all() and ours.config.layer_windows is None
    if ours.task != "question-answering" or mask.all() or sees_text:
        return ours(**inputs, **labels), reference(**inputs, position_ids=positions, **labels)
    length = mask.shape[1]
    visible = torch.ones(length, length).tril().bool() & mask[:, None, None, :] | torch.eye(length).bool()
    bias = torch.where(visible, 0.0, torch.finfo(ours.dtype).min).to(ours.dtype)
    ids = inputs["input_ids"]
    return (
        ours(ids, attention_mask=visible, position_ids=positions, **labels),
        reference(ids, attention_mask=bias, position_ids=positions, **labels),
    )


def make_labels(task, inputs):
    """Labels as the task takes them; nothing is to be learned at padding, nor at some real tokens."""
    mask = inputs["attention_mask"].bool()
    rows, length = mask.shape
    if task == "sequence-classification":
        return {"labels": torch.tensor([2, 0, 1])}
    if task == "question-answering":
        first = mask.int().argmax(-1)
        return {
            "start_positions": first + 2,
            "end_positions": torch.tensor([int(first[0]) + 5, length, length + 7]),
        }
    labels = torch.arange(rows * length).view(rows, length) % 3
    if task == "causal-lm":
        labels = inputs["input_ids"]
        mask = mask & functional.pad(mask, (1, -1))  # a first token follows from nothing but padding
    return {"labels": labels.masked_fill(~mask, -100).index_fill(1, torch.tensor([8]), -100)}


def scores(out):
    """The logits of either library, start and end side by side."""
    both = getattr(out, "start_logits", None)
    return out.logits if both is None else torch.stack([out.start_logits, out.end_logits], -1)


def is_real(task, inputs):
    """What may be compared: real tokens; a row's one answer always."""
    return ... if task == "sequence-classification" else inputs["attention_mask"].bool()


# ------------------------------------------------------------------------------------------------------------
# Against transformers


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "task"), CELLS)
def test_logits_and_losses_are_the_references_bit_for_bit(family, task, dtype, padding, tmp_path):
    reference = make_reference(family, task, tmp_path, dtype)
    ours = minilm.load(tmp_path, task=task, backend="eager")
    inputs, positions = make_inputs(ours, padding)
    labels = make_labels(task, inputs)
    with torch.no_grad():
        found, expected = run_both(ours, reference, inputs, positions, labels)
    real = is_real(task, inputs)
    assert scores(found).dtype == dtype
    assert torch.equal(scores(found)[real], scores(expected)[real])
    assert scores(found)[real].float().std() > 0.5  # the parameters hide nothing
    # Its own rounding in bf16: a few lines' logarithm, and BigCode's loss of tokens, which stays in bf16.
    rounds = (family, task) not in SHARED_CELLS or (family, task) == ("gpt_bigcode", "token-classification")
    tolerance = 1e-2 if rounds and dtype == torch.bfloat16 else 1e-6
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=tolerance)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("family", "task"), CELLS)
def test_gradients_are_the_references(family, task, padding, tmp_path):
    """Of every parameter, those of the trunk included."""
    reference = make_reference(family, task, tmp_path)
    ours = minilm.load(tmp_path, task=task, backend="eager")
    inputs, positions = make_inputs(ours, padding)
    labels = make_labels(task, inputs)
    for out in run_both(ours, reference, inputs, positions, labels):
        out.loss.backward()
    if reference.get_input_embeddings().padding_idx is not None:
        # Some families of the reference never train the pad token's embedding.
        for table in (ours.decoder.embed_tokens, reference.get_input_embeddings()):
            table.weight.grad[PAD] = 0
    rules = FAMILIES[family]
    prefix = WITHOUT_ANSWERS.get(family)
    expected = {
        rules.canonical(name.replace("trunk", prefix or "trunk"), task): value.grad
        for name, value in reference.named_parameters()
    }
    for name, parameter in ours.named_parameters():
        theirs = expected.pop(rules.file_name(name, task))
        torch.testing.assert_close(
            parameter.grad, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert not expected


@pytest.mark.parametrize("backend", ["sdpa", "flash"])
@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_backend_serves_the_heads(task, backend, padding, tmp_path):
    make_reference("qwen2", task, tmp_path)
    model = minilm.load(tmp_path, task=task, backend="eager")
    inputs, _ = make_inputs(model, padding)
    real = is_real(task, inputs)
    with torch.no_grad():
        expected = scores(model(**inputs))[real]
        model.backend = backend
        torch.testing.assert_close(scores(model(**inputs))[real], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_before_a_token_head_while_training(family, tmp_path):
    """The same seed drops the same entries, once no other dropout draws before it."""
    quiet = {"gpt_bigcode": {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}}.get(family, {})
    reference = make_reference(
        family, "token-classification", tmp_path, classifier_dropout=0.4, **quiet
    ).train()
    ours = minilm.load(tmp_path, task="token-classification", backend="eager").train()
    inputs, positions = make_inputs(ours, "right")
    torch.manual_seed(5)
    expected = reference(**inputs, position_ids=positions).logits
    torch.manual_seed(5)
    found = ours(**inputs).logits
    real = inputs["attention_mask"].bool()
    assert torch.equal(found[real], expected[real])
    assert not torch.equal(found[real], ours.eval()(**inputs).logits[real])


# ------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "task"), CELLS)
def test_saving_keeps_every_bit_and_transformers_loads_it(family, task, dtype, tmp_path):
    source, copy = tmp_path / "source", tmp_path / "copy"
    make_reference(family, task, source, dtype, classifier_dropout=0.25)
    model = minilm.load(source, task=task, backend="eager")
    minilm.save(model, copy)
    rules = FAMILIES[family]
    before, after = (load_file(path / "model.safetensors") for path in (source, copy))
    before = {rules.canonical(name, task): value for name, value in before.items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[name]) and value.dtype == dtype for name, value in after.items())
    if (family, task) not in SHARED_CELLS:
        assert torch.equal(minilm.load(copy, task=task).head.weight, model.head.weight)
        return
    loaded = load_reference(task, copy)
    assert type(loaded).__name__ == json.loads((copy / "config.json").read_text())["architectures"][0]
    assert loaded.config.id2label == NAMES and loaded.config.label2id == {v: k for k, v in NAMES.items()}
    assert loaded.config.classifier_dropout == model.config.classifier_dropout == 0.25
    inputs, positions = make_inputs(model, "left")
    real = is_real(task, inputs)
    with torch.no_grad():
        expected = scores(loaded(**inputs, position_ids=positions))
        assert torch.equal(scores(model(**inputs))[real], expected[real])


def head_names(family, task):
    """What a file of the task calls the head's weights."""
    name = FAMILIES[family].head(task)
    return (
        [f"{name}.weight"]
        if task in ("causal-lm", "sequence-classification")
        else [f"{name}.weight", f"{name}.bias"]
    )


@pytest.mark.parametrize("kind", ["base", "lm", "other head"])
@pytest.mark.parametrize(("family", "task"), CELLS)
def test_any_task_from_any_file(family, task, kind, tmp_path, caplog):
    """The trunk is kept bit for bit; head weights that are new are named, and no others are."""
    other = "token-classification" if task == "sequence-classification" else "sequence-classification"
    writer = {"base": "causal-lm", "lm": "causal-lm", "other head": other}[kind]
    changes = {} if kind != "base" else {"tie_word_embeddings": False}
    reference = make_reference(family, writer, tmp_path, torch.bfloat16, **changes)
    if kind == "base":
        reference.base_model.save_pretrained(tmp_path)
    lm = minilm.load(tmp_path, task=writer) if kind != "base" else None
    caplog.clear()
    with caplog.at_level(logging.WARNING, "minilm"):
        model = minilm.load(tmp_path, task=task)
    rules = FAMILIES[family]
    theirs = {rules.canonical(name, task): value for name, value in reference.named_parameters()}
    for name, parameter in model.decoder.named_parameters():
        assert torch.equal(parameter, theirs[rules.file_name(f"decoder.{name}", task)]), name
    has_head = writer == task and kind != "base"
    is_new = not has_head and not (task == "causal-lm" and model.config.tie_embeddings)
    expected = head_names(family, task) if is_new else []
    assert [
        name for name in caplog.text.replace(",", " ").split() if name.endswith((".weight", ".bias"))
    ] == expected
    assert model.dtype == torch.bfloat16 and all(value.dtype == model.dtype for value in model.parameters())
    assert lm is None or lm.dtype == model.dtype
    if is_new:
        head = model.lm_head if task == "causal-lm" else model.head
        assert 0.5 < head.weight.float().std() / model.config.init_std < 1.5
        assert head.bias is None or not head.bias.any()


@pytest.mark.parametrize("task", HEADS)
def test_a_missing_tensor_of_the_trunk_is_refused_for_every_task(task, tmp_path):
    make_reference("qwen2", "causal-lm", tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    trunk = "transformer" if task == "question-answering" else "model"
    with pytest.raises(CheckpointError, match=rf"missing {trunk}\.layers\.1\.mlp\.up_proj\.weight"):
        minilm.load(tmp_path, task=task)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_of_the_task_must_hold_its_whole_head(family, tmp_path):
    """A classifier whose head was lost is not quietly given a new one."""
    make_reference(family, "token-classification", tmp_path)
    weight, bias = head_names(family, "token-classification")
    rewrite(tmp_path, lambda tensors: tensors.pop(bias))
    with pytest.raises(CheckpointError, match=f"missing {bias}"):
        minilm.load(tmp_path, task="token-classification")
    rewrite(tmp_path, lambda tensors: tensors.pop(weight))
    with pytest.raises(CheckpointError, match=f"missing {weight}"):
        minilm.load(tmp_path, task="token-classification")


def test_a_head_of_another_size_is_refused(tmp_path):
    make_reference("qwen2", "sequence-classification", tmp_path)
    with pytest.raises(CheckpointError, match=r"score\.weight is \(3, 48\) where \(5, 48\) is needed"):
        minilm.load(tmp_path, task="sequence-classification", num_labels=5)


def test_without_architectures_the_tensors_tell(tmp_path, caplog):
    make_reference("gpt_neox", "token-classification", tmp_path)
    rewrite(tmp_path, architectures=None)
    model = minilm.load(tmp_path, task="token-classification")
    assert torch.equal(model.head.weight, load_file(tmp_path / "model.safetensors")["classifier.weight"])
    assert not caplog.text
    with pytest.raises(CheckpointError, match=r"missing embed_out\.weight; unexpected classifier"):
        minilm.load(tmp_path)


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification"])
def test_the_number_of_labels(task, tmp_path):
    """As many as asked for, as the file says, or two; names that no longer fit are given up."""
    make_reference("llama", "causal-lm", tmp_path)
    assert minilm.load(tmp_path, task=task).config.label_names == ("low", "middle", "high")
    assert minilm.load(tmp_path, task=task, num_labels=3).config.label_names == ("low", "middle", "high")
    model = minilm.load(tmp_path, task=task, num_labels=1)
    assert model.config.label_names == ("LABEL_0",) and model.head.weight.shape == (1, 48)
    minilm.save(model, tmp_path / "copy")
    assert load_reference(task, tmp_path / "copy").config.num_labels == 1
    rewrite(tmp_path, id2label=None, label2id=None)
    assert minilm.load(tmp_path, task=task).head.weight.shape == (2, 48)
    rewrite(tmp_path, num_labels=4)
    assert minilm.load(tmp_path, task=task).head.weight.shape == (4, 48)
    with pytest.raises(ValueError, match="num_labels is 0; a classifier needs at least one"):
        minilm.load(tmp_path, task=task, num_labels=0)


def test_labels_are_not_for_every_task(tmp_path):
    make_reference("llama", "causal-lm", tmp_path)
    for task in ("causal-lm", "question-answering"):
        with pytest.raises(ValueError, match=f"num_labels is for classifiers; leave it out for {task}"):
            minilm.load(tmp_path, task=task, num_labels=3)


@pytest.mark.parametrize("problem", loss.PROBLEMS)
def test_a_named_problem_is_read_used_and_written_back(problem, tmp_path):
    labels = torch.tensor([2, 0, 1]) if problem == "single_label_classification" else torch.rand(3, 3)
    reference = make_reference("gemma", "sequence-classification", tmp_path, problem_type=problem)
    ours = minilm.load(tmp_path, task="sequence-classification", backend="eager")
    inputs, positions = make_inputs(ours, "right")
    expected = reference(**inputs, position_ids=positions, labels=labels).loss
    assert torch.equal(ours(**inputs, labels=labels).loss, expected)
    minilm.save(ours, tmp_path / "copy")
    assert load_reference("sequence-classification", tmp_path / "copy").config.problem_type == problem


def test_label_settings_that_cannot_be(tmp_path):
    values = dict(FAMILIES["llama"].tiny)
    for change, message in (
        ({"id2label": {"0": "a", "2": "b"}}, "it must name label 0, 1, 2, … without a gap"),
        ({"id2label": []}, "it must name label 0, 1, 2, … without a gap"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; allowed are 'regression'"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "nothing to choose"),
        ({"classifier_dropout": 1.5}, "classifier_dropout is 1.5; a probability"),
    ):
        with pytest.raises(ConfigError, match=message):
            FAMILIES["llama"].read_config(values | change)


# ------------------------------------------------------------------------------------------------------------
# Pooling


@pytest.fixture
def classifier():
    config = FAMILIES["qwen2"].read_config(FAMILIES["qwen2"].tiny | {"pad_token_id": PAD})
    return randomise(minilm.SequenceClassifier(config)).eval()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_answer_is_that_of_the_row_alone(classifier, padding):
    """Of each row without its padding: no pad is read, and no other row."""
    inputs, _ = make_inputs(classifier, padding)
    found = classifier(**inputs).logits
    for row, ids in enumerate(inputs["input_ids"]):
        text = ids[inputs["attention_mask"][row].bool()][None]
        torch.testing.assert_close(found[row : row + 1], classifier(text).logits, rtol=0, atol=2e-5)


def test_the_mask_counts_where_text_holds_the_pad_id(classifier):
    """Where pad is the end's id as well, the last token of a text is no padding."""
    ids = torch.tensor([[5, 6, 7, PAD], [5, 6, PAD, PAD]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    found = classifier(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[1:], classifier(ids[1:, :3], attention_mask=mask[1:, :3]).logits)
    assert not torch.allclose(found, classifier(ids).logits, atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_mask_the_pad_id_decides_as_in_transformers(family, tmp_path):
    """The rightmost token that is no pad, also when pads stand before it or between; index 0 if all are."""
    reference = make_reference(family, "sequence-classification", tmp_path)
    ours = minilm.load(tmp_path, task="sequence-classification", backend="eager")
    p = PAD
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, p, p], [p, p, 5, 6, 7], [5, p, 6, p, p], [p, p, p, p, p]])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, reference(ids).logits)
        assert torch.equal(ours(ids[1:2]).logits, reference(ids[1:2]).logits)


def test_rows_whose_end_is_unknown_are_refused(classifier):
    classifier.config = classifier.config.replace(pad_token_id=None)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with pytest.raises(ValueError, match="2 rows came with neither an attention_mask"):
        classifier(ids)
    one = classifier(ids[:1]).logits  # a single row is read at its end
    torch.testing.assert_close(classifier(ids, attention_mask=torch.ones_like(ids)).logits[:1], one)
    embedded = classifier.decoder.embed(ids)
    classifier.config = classifier.config.replace(pad_token_id=PAD)
    with pytest.raises(ValueError, match="2 rows came with neither"):
        classifier(inputs_embeds=embedded)  # no ids to look for the pad id in
    torch.testing.assert_close(classifier(inputs_embeds=embedded[:1]).logits, one)


def test_the_last_true_of_each_row():
    real = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    assert pooling.last_real_token(real).tolist() == [2, 3, 2, 0]


def test_a_classifier_goes_on_from_a_cache(classifier):
    """The mask covers cached tokens, of which none is the last."""
    ids = torch.randint(4, 200, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    cache = minilm.DynamicCache(classifier.config)
    classifier(ids[:, :4], attention_mask=mask[:, :4], cache=cache)
    out = classifier(ids[:, 4:], attention_mask=mask, cache=cache)
    assert out.cache is cache
    torch.testing.assert_close(out.logits, classifier(ids, attention_mask=mask).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", TASKS.values())
def test_what_else_a_task_returns(kind):
    config = FAMILIES["qwen2"].read_config(FAMILIES["qwen2"].tiny)
    model = kind(config, backend="eager").eval()
    out = model(torch.tensor([[5, 6, 7]]), output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == config.num_layers and len(out.hidden_states) == config.num_layers + 1
    assert out.loss is None and out.cache is None
    out = model(torch.tensor([[5, 6, 7]]))
    assert out.attentions is None and out.hidden_states is None
    assert (model.backend, model.dtype, model.device.type) == ("eager", torch.float32, "cpu")


def test_the_trunk_alone():
    """What every head reads; all but the tokens may be left out."""
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)).eval()
    ids = torch.tensor([[5, 6, 7]])
    out = model.decoder(ids)
    assert torch.equal(model.score_tokens(out.hidden), model(ids).logits)
    assert torch.equal(model.decoder(inputs_embeds=model.decoder.embed(ids)).hidden, out.hidden)
    assert (out.cache, out.attentions, out.hidden_states, out.cross_attentions) == (None,) * 4
    assert Decoder(model.config).backend == "sdpa"


# ------------------------------------------------------------------------------------------------------------
# Losses, against what they mean


def test_the_loss_follows_from_the_labels():
    """transformers' rule: one output is a regression; integers choose a class, anything else yes or no."""
    for labels, count, problem in (
        (torch.tensor([0, 1]), 3, "single_label_classification"),
        (torch.tensor([0, 1], dtype=torch.int32), 3, "single_label_classification"),
        (torch.rand(2, 3), 3, "multi_label_classification"),
        (torch.ones(2, 3, dtype=torch.bool), 3, "multi_label_classification"),
        (torch.tensor([0, 1]), 1, "regression"),
        (torch.rand(2), 1, "regression"),
    ):
        assert loss.choose_problem(count, labels) == problem


def test_each_sequence_loss_is_what_it_says():
    logits = torch.randn(4, 3)
    classes = torch.tensor([2, -100, 0, 1])
    surprise = -sum(logits[row].log_softmax(-1)[classes[row]] for row in (0, 2, 3)) / 3
    torch.testing.assert_close(loss.sequence_loss(logits, classes), surprise)
    torch.testing.assert_close(loss.sequence_loss(logits, classes[:, None]), surprise)
    torch.testing.assert_close(loss.sequence_loss(logits, classes.int()), surprise)

    chosen = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    right = torch.where(chosen.bool(), logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(loss.sequence_loss(logits, chosen.float()), -right.log().mean())
    named = loss.sequence_loss(logits, chosen, "multi_label_classification")
    torch.testing.assert_close(named, -right.log().mean())

    targets = torch.randn(4, 3)
    squares = (logits - targets).square().mean()
    torch.testing.assert_close(loss.sequence_loss(logits, targets, "regression"), squares)
    torch.testing.assert_close(
        loss.sequence_loss(logits[:, :1], targets[:, 0]), (logits[:, 0] - targets[:, 0]).square().mean()
    )  # fmt: skip
    whole = loss.sequence_loss(logits[:, :1].requires_grad_(), torch.tensor([1, 2, 3, 4]))
    whole.backward()  # whole numbers can be learned from as well


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sequence_losses_are_transformers_in_both_dtypes(dtype, count):
    from transformers.loss.loss_utils import ForSequenceClassificationLoss

    logits = torch.randn(5, count).to(dtype)
    for labels in (torch.randn(5, count).sigmoid(), torch.randint(0, count, (5,))):
        config = transformers.PretrainedConfig(num_labels=count)
        expected = ForSequenceClassificationLoss(labels, logits, config)
        found = loss.sequence_loss(logits, labels)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, check_dtype=count != 1)


def test_labels_that_do_not_fit_are_refused():
    logits = torch.randn(4, 3)
    for labels, problem, message in (
        (
            torch.rand(4),
            None,
            r"labels are \(4,\) torch.float32; multi_label_classification .* needs \(4, 3\)",
        ),
        (torch.zeros(4, 3).long(), None, r"single_label_classification with 3 outputs needs \(4,\)"),
        (torch.zeros(3, 4), "regression", r"needs \(4, 3\)"),
        (torch.tensor([0, 1, 2, 3]), None, "label 3 does not exist; allowed are 0 to 2, and -100"),
        (torch.tensor([0, 1, 2, -1]), None, "label -1 does not exist"),
        (torch.rand(4, 3), "ranking", "problem_type is 'ranking'; allowed are regression, single"),
    ):
        with pytest.raises(ValueError, match=message):
            loss.sequence_loss(logits, labels, problem)
    with pytest.raises(ValueError, match="label 3 does not exist"):
        loss.token_loss(logits[None], torch.tensor([[0, 1, 2, 3]]))


def test_ignored_labels_leave_sum_and_count():
    logits, labels = torch.randn(2, 5, 4), torch.randint(0, 4, (2, 5))
    labels[0, 1:3] = labels[1, 4] = -100
    kept = labels != -100
    expected = functional.cross_entropy(logits[kept], labels[kept])
    torch.testing.assert_close(loss.token_loss(logits, labels), expected)
    assert math.isnan(loss.token_loss(logits, torch.full_like(labels, -100)))
    shifted = torch.cat([torch.zeros(2, 1).long(), labels], 1)
    padded = torch.cat([logits, torch.randn(2, 1, 4)], 1)
    torch.testing.assert_close(loss.next_token_loss(padded, shifted), expected)


def test_spans_outside_the_row_do_not_count():
    """Beyond the end: ignored, each side by itself; before the start: the first token, as in transformers."""
    from transformers.loss.loss_utils import ForQuestionAnsweringLoss

    logits = torch.randn(4, 6, 2)
    start, end = torch.tensor([1, 6, 9, -4]), torch.tensor([3, 2, 60, 5])
    expected = ForQuestionAnsweringLoss(logits[..., 0], logits[..., 1], start.clone(), end.clone())
    torch.testing.assert_close(loss.span_loss(logits, start, end), expected)
    torch.testing.assert_close(loss.span_loss(logits, start[:, None], end[:, None]), expected)
    by_hand = functional.cross_entropy(logits[[0, 3], :, 0], torch.tensor([1, 0]))
    by_hand += functional.cross_entropy(logits[[0, 1, 3], :, 1], torch.tensor([3, 2, 5]))
    torch.testing.assert_close(expected, by_hand / 2)


def test_a_span_needs_both_ends():
    model = minilm.QuestionAnswerer(FAMILIES["qwen2"].read_config(FAMILIES["qwen2"].tiny))
    with pytest.raises(ValueError, match="both start_positions and end_positions"):
        model(torch.tensor([[5, 6]]), start_positions=torch.tensor([0]))


def test_a_mask_of_pairs_does_not_say_what_is_padding():
    """A 4-D mask counts as none: the padding token decides."""
    ids = torch.tensor([[7, 8, 0], [0, 7, 9]])
    pairs = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    found = pooling.real_tokens(torch.zeros(2, 3, 4), ids, pairs, 0)
    assert found.tolist() == [[True, True, False], [False, True, True]]


@pytest.mark.parametrize("kind", [minilm.SequenceClassifier, minilm.TokenClassifier, minilm.QuestionAnswerer])
def test_embeddings_stand_for_their_tokens_in_every_head(kind):
    model = kind(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)).eval()
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    out = model(ids, attention_mask=mask)
    assert out.loss is out.cache is out.attentions is out.hidden_states is None  # what nobody asked for
    expected = out.logits
    embedded = model.decoder.embed(ids)
    assert torch.equal(model(inputs_embeds=embedded, attention_mask=mask).logits, expected)
    moved = model(ids, attention_mask=mask, position_ids=torch.tensor([[0, 1, 5]])).logits
    assert not torch.equal(moved, expected)
