"""Checkpoints in and out: Hugging Face directories of safetensors, single or sharded, and GGUF files in.

A load is complete or refused. Weights stay memory-mapped: a tensor is read from the disk when it is first
used.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from minilm import backends, checks, families, staging
from minilm.config import ConfigError, ModelConfig
from minilm.families.base import CLASS_SUFFIXES, Family, default_label_names
from minilm.heads import TASKS
from minilm.task import TaskModel

logger = logging.getLogger("minilm")
SHIPPED = Path(__file__).parent / "checkpoints"  # small trained models that are part of the package
INDEX = "model.safetensors.index.json"
PICKLES = re.compile(r".+\.(bin|pt|pth|ckpt)(\.index\.json)?")  # how files of pickled weights are called


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded whole. The message names what is wrong and what to do."""


# ------------------------------------------------------------------------------------------------------------
# Where a source is


def cache_dir() -> Path:
    """Where fetched models are kept: $MINILM_HOME, else the user's cache folder."""
    home = os.environ.get("MINILM_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minilm"


def shipped() -> list[str]:
    """The names of the small trained models that are part of the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def resolve(source: str | os.PathLike) -> Path:
    """The local directory or .gguf file that a source means; a Hub name is downloaded once.

    Where a save was killed while it replaced files, it is the folder in the directory that holds all of them.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"{checks.shown(source)} is no checkpoint; give its path or name as a string")
    path, name = _expanded(source), os.fspath(source)
    if name and (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        return staging.current(path)
    if path.is_file():
        raise CheckpointError(
            f"{name} is a file of a kind that is not read here; give its directory, or a .gguf file"
        )
    for folder in (SHIPPED, cache_dir()):
        if re.fullmatch(r"[\w.-]{1,96}", name) and (folder / name / "config.json").is_file():
            return folder / name
    if name == "smollm2":
        raise CheckpointError("smollm2 has not been fetched yet; run: python -m minilm fetch smollm2")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _download(name)
    raise CheckpointError(
        f"there is no checkpoint {name!r}; give a directory, a .gguf file, a Hub name like owner/model, "
        f"smollm2, or one of those that ship with minilm: {', '.join(shipped())}"
    )


def _expanded(source: str | os.PathLike) -> Path:
    """The path with ~ written out; one that the system cannot look up is that of nothing."""
    path = Path(source)
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, a null character, nobody's home
        path = path.expanduser()
        path.exists()
        return path
    return Path(os.devnull) / "nothing"


def _download(repo: str) -> Path:
    """A snapshot of a Hub repository, from the local cache when the Hub does not answer."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the Hub client raises many kinds, all meaning that it could not be had
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if isinstance(error, json.JSONDecodeError):
            reason = "its answer is no JSON, as where a proxy or a login page answers in its place"
        raise CheckpointError(
            f"could not get {repo!r} from the Hub ({reason}). If this is a local directory, check its path. "
            "Offline, copy the repository's directory here and give its path, or use smollm2 (python -m "
            "minilm fetch smollm2)"
        ) from None


# ------------------------------------------------------------------------------------------------------------
# Reading


def read_json(path: Path) -> dict:
    """A JSON object from a file, or an error that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); a JSON file is needed") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Get the file again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; a JSON object is needed")
    return values


def read_config(source: str | os.PathLike) -> tuple[Family, ModelConfig]:
    """The family and structure of a checkpoint, without its weights."""
    path = resolve(source)
    if path.is_file():
        from minilm import gguf_reader

        return families.read_config(gguf_reader.read_config(path))
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} has no config.json, so it is not a checkpoint directory; give the one that has it"
        )
    return families.read_config(read_json(path / "config.json"))


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory: the one, or the shards that its index names."""
    single, index = directory / "model.safetensors", directory / INDEX
    if single.is_dir():
        raise CheckpointError(f"{single} is a directory; the file of that name is needed, so get it again")
    if single.exists():
        return [single]
    if not index.exists():
        raise CheckpointError(why_no_weights(directory))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}; shards must lie in the same directory")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            f"{index} names {', '.join(missing) or 'no shards'}, which {directory} does not have"
        )
    return [directory / name for name in names]


def why_no_weights(directory: Path) -> str:
    """What a directory without safetensors holds in their place, and what to do."""
    names = sorted(path.name for path in directory.iterdir())
    pickles = [name for name in names if PICKLES.fullmatch(name)]
    if pickles:
        return (
            f"{directory} holds its weights as {pickles[0]}, a pickle, which can run code when it is "
            "opened. Convert it once where you trust it: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    files = [name for name in names if name.endswith(".gguf")]
    if files:
        return f"{directory} holds its weights as GGUF; load the file itself: {directory / files[0]}"
    if "model.safetensors" in names:
        return (
            f"{directory / 'model.safetensors'} is a link to a file that is not there; copy the file itself"
        )
    if "adapter_model.safetensors" in names:
        return (
            f"{directory} holds an adapter to the weights of another model; merge the two with the peft "
            "package (merge_and_unload) and save the result"
        )
    return (
        f"{directory} has neither model.safetensors nor {INDEX}; copy the weights there. (From the Hub only "
        "safetensors are downloaded; a repository of pickles has to be converted first)"
    )


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory by their names in the files, memory-mapped."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(directory):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = list(file.keys())
                twice = sorted(set(names) & set(tensors))
                if twice:
                    raise CheckpointError(f"{twice[0]} stands in {path.name} and in another shard")
                tensors |= {name: file.get_tensor(name) for name in names}
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read as safetensors: {error}. Download or save it again"
            ) from None
    return tensors


def assign(
    model: TaskModel, family: Family, tensors: Mapping[str, Tensor], architectures: list[str] | None = None
) -> None:
    """Make a file's tensors the model's parameters, without a copy; refuse what does not fit exactly.

    The trunk must be whole. So must the head, where the file is one of this task; heads of other tasks are
    left out, and then the model's own is new, which the log says.
    architectures: of config.json, the class that wrote the file.
    """
    available = {}
    for name, tensor in tensors.items():
        canonical = family.canonical(name, model.task)
        if canonical in available:
            raise CheckpointError(f"the file has two tensors for {canonical}, one of them called {name}")
        if canonical is not None:
            available[canonical] = tensor
    file_names = {name: family.file_name(name, model.task) for name, _ in model.named_parameters()}
    if model.config.tie_embeddings:
        _drop_tied_copy(family, available, file_names)
    new = []
    if not _holds_head(model.task, family, available, architectures):
        heads = {family.head(task) for task in TASKS}
        available = {name: value for name, value in available.items() if name.rpartition(".")[0] not in heads}
        new = [name for name in file_names if not name.startswith("decoder.")]
    wanted = {name: value.shape for name, value in model.named_parameters() if name not in new}

    problems = [f"missing {file_names[name]}" for name in wanted if file_names[name] not in available]
    problems += [f"unexpected {name}" for name in sorted(set(available) - set(file_names.values()))]
    for name, shape in wanted.items():
        found = available.get(file_names[name])
        if found is not None and found.shape != shape:
            problems.append(f"{file_names[name]} is {tuple(found.shape)} where {tuple(shape)} is needed")
        if found is not None and (not found.is_floating_point() or found.dtype.itemsize < 2):
            problems.append(f"{file_names[name]} is {found.dtype}; quantised weights are not supported")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"the weights do not fit the {family.model_type} model of config.json: {shown}")
    state = {name: available[file_names[name]] for name in wanted}
    if new:
        dtype = common_dtype(state)
        state |= {name: _new_weight(model, name).to(dtype) for name in new}
        logger.warning(
            "%s not in the checkpoint, so the head is new: train it before you use its answers",
            " and ".join(file_names[name] for name in new) + (" are" if len(new) > 1 else " is"),
        )
    model.load_state_dict(state, assign=True)


def _new_weight(model: TaskModel, name: str) -> Tensor:
    """A starting value for a parameter of the head: normal for matrices, zero for biases."""
    value = torch.zeros(model.get_parameter(name).shape)
    return value if name.endswith("bias") else value.normal_(std=model.config.init_std)


def _holds_head(
    task: str, family: Family, available: Mapping[str, Tensor], architectures: list[str] | None
) -> bool:
    """Whether a file is one of this task: by the class that wrote it, else by the tensors that it holds."""
    written_by = " ".join(map(str, architectures or ())) + " "
    named = [task for task, suffix in CLASS_SUFFIXES.items() if f"{suffix} " in written_by]
    if named:
        return task in named
    present = any(name.rpartition(".")[0] == family.head(task) for name in available)
    return present or (task == "causal-lm" and not architectures)


def _drop_tied_copy(family: Family, available: dict[str, Tensor], file_names: dict[str, str]) -> None:
    """Files of tied models sometimes hold the table twice, or as the head's; two copies must say the same."""
    copy = available.pop(family.file_name("lm_head.weight"), None)
    if copy is not None and not torch.equal(
        copy, available.setdefault(file_names["decoder.embed_tokens.weight"], copy)
    ):
        raise CheckpointError(
            "config.json ties the output head to the embeddings, but the file holds two different tables; "
            "set tie_word_embeddings to false to use both"
        )


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The one dtype that loses nothing of these tensors: theirs, or the widest of several."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    result = dtypes.pop()
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


def load(
    source: str | os.PathLike,
    task: str = "causal-lm",
    backend: str = "sdpa",
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    num_labels: int | None = None,
) -> TaskModel:
    """A model with the weights of a checkpoint, in eval mode.

    source: a directory, a Hub name, a .gguf file, a shipped checkpoint, or "smollm2" once fetched.
    task:   "causal-lm", "sequence-classification", "token-classification" or "question-answering". From a
            file of another task, or of the bare trunk, the trunk is kept and the head is new; the log names
            its weights.
    dtype:  None keeps the checkpoint's; files that mix dtypes are widened to the one that loses nothing.
    num_labels: how many outputs a classifier has; None means as many as config.json says, else two.
    Raises: CheckpointError, naming what is missing, unexpected or misshapen; ConfigError for an unknown
            structure.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} does not exist; choose one of {', '.join(TASKS)}")
    if num_labels is not None and not task.endswith("classification"):
        raise ValueError(
            f"num_labels is for classifiers; leave it out for {task}, which has outputs of its own"
        )
    if num_labels is not None:
        checks.whole_number("num_labels", num_labels, 1, "a classifier needs at least one")
    backends.select(backend)  # so that a wrong name is refused here, not by the first forward pass
    device = checks.device(device)
    if dtype is not None:
        checks.dtype(dtype)
    path = resolve(source)
    family, config = read_config(path)
    if num_labels not in (None, config.num_labels):
        config = config.replace(label_names=default_label_names(num_labels))
    with torch.device("meta"):
        model = TASKS[task](config, backend)
    if path.is_file():
        from minilm import gguf_reader

        tensors = gguf_reader.read_tensors(path, family, config)
        generation_config, architectures = {}, None
    else:
        tensors = read_tensors(path)
        generation_file = path / "generation_config.json"
        generation_config = read_json(generation_file) if generation_file.exists() else {}
        architectures = read_json(path / "config.json").get("architectures")
        if not isinstance(architectures, list | None):
            raise CheckpointError(
                f"{path / 'config.json'} says architectures = {architectures!r}; it must be a list of names"
            )
    assign(model, family, tensors, architectures)
    model.family, model.generation_config = family.model_type, generation_config
    return model.to(device=device, dtype=dtype or common_dtype(dict(model.named_parameters()))).eval()


# ------------------------------------------------------------------------------------------------------------
# Writing


def save(
    model: TaskModel,
    directory: str | os.PathLike,
    max_shard_bytes: int = 5_000_000_000,
    also: Callable[[Path], object] | None = None,
) -> None:
    """Write a directory that transformers and minilm load: structure, weights, settings for generating.

    A save that is interrupted or killed at any moment leaves the old checkpoint or the new one: `load` finds
    it, and the next save clears up. One process at a time may save to a directory.

    also: writes more files of the checkpoint into a folder that it is given, such as a tokenizer's `save`.
    Raises: OSError where a file cannot be written, ValueError for what has no weights or no names for them.
    """
    family = _family_of(model)
    checks.whole_number("max_shard_bytes", max_shard_bytes, 1, "it must be at least 1")
    config = family.write_config(model.config, model.task) | {
        "dtype": str(model.dtype).removeprefix("torch.")
    }
    # Saved as they are in memory, bit for bit; contiguous because the format stores no strides.
    state = {
        family.file_name(name, model.task): value.detach().contiguous()
        for name, value in model.named_parameters()
    }
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    texts = {"generation_config.json": model.generation_config} if model.generation_config else {}
    texts |= {"config.json": config}
    if plan.is_sharded:
        texts |= {INDEX: {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}}
    files = {name: {member: state[member] for member in names}
             for name, names in plan.filename_to_tensors.items()}  # fmt: skip
    directory = Path(directory)
    is_new = not directory.exists()
    try:
        with staging.replacing(directory) as folder:
            for name, tensors in files.items():
                save_file(tensors, folder / name, metadata={"format": "pt"})
            for name, values in texts.items():
                write_json(folder / name, values)
            if also is not None:
                also(folder)
    except BaseException as error:
        if is_new:
            with contextlib.suppress(OSError):
                directory.rmdir()
        if not isinstance(error, OSError | safetensors.SafetensorError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"the model cannot be saved in {directory} ({reason}); what was there is as it was. "
            "Mend that, or give another directory"
        ) from None


def _family_of(model: TaskModel) -> families.Family:
    """The family whose names a model's weights get in a file."""
    if not isinstance(model, TaskModel):
        raise ValueError(f"save writes a model of minilm, and got {checks.shown(model)}; load or make one")
    if model.family is None:
        known = ", ".join(families.FAMILIES)
        raise ValueError(
            f"this model has no family yet, so its weights have no names; set model.family: {known}"
        )
    if model.device.type == "meta":
        raise ValueError("this model is on the device meta and has no weights to save; load it on cpu")
    try:
        json.dumps(model.generation_config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"model.generation_config cannot be written as JSON ({error}); it may hold numbers, strings, "
            "lists and dictionaries"
        ) from None
    return families.get_family(model.family)


def write_json(path: Path, values: Mapping) -> None:
    """A JSON file as transformers writes them."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


__all__ = ["CheckpointError", "ConfigError", "load", "read_config", "save"]
