"""What minilm is compared with: small models of transformers, with parameters that hide nothing."""

from pathlib import Path

import torch
import transformers
from torch import nn

from minilm.families import FAMILIES


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters; at default initialisation most bugs change nothing.

    Norm weights 1 + 0.3·N (0.3·N where the norm itself adds the 1), biases 0.3·N, matrices 1.5/√fan_in·N.
    Works on transformers' models and on minilm's; a parameter that is shared is drawn once.
    """
    generator = torch.Generator().manual_seed(seed)
    done = set()
    for module in model.modules():
        kind = type(module).__name__
        is_offset_norm = kind == "GemmaRMSNorm" or getattr(module, "kind", None) == "offset_rms"
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in done:
                continue
            done.add(parameter)
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                noise *= 1.5 / parameter.shape[-1] ** 0.5
            elif name == "weight" and "Norm" in kind and not is_offset_norm:
                noise = 1 + 0.3 * noise
            else:
                noise *= 0.3
            parameter.copy_(noise)
    return model


def build_reference(model_type: str, attn_implementation: str = "eager", **config_changes) -> nn.Module:
    """transformers' model of a family's tiny config, in fp32, with its own starting weights."""
    values = {**FAMILIES[model_type].tiny, **config_changes}
    config = transformers.AutoConfig.for_model(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    return model.eval()


def make_reference(
    model_type: str,
    tmp_path: Path,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "eager",
    seed: int = 0,
    **config_changes,
) -> tuple[Path, nn.Module]:
    """A checkpoint of transformers with randomised parameters, and the model that transformers loads from it.

    The model is loaded back rather than cast: .to(bfloat16) would round its rotary frequencies as well.
    """
    directory = tmp_path / f"{model_type}-{str(dtype).removeprefix('torch.')}"
    model = randomise(build_reference(model_type, **config_changes), seed)
    model.to(dtype).save_pretrained(directory)
    return directory, load_reference(directory, attn_implementation)


def load_reference(directory: Path, attn_implementation: str = "eager") -> nn.Module:
    """What transformers makes of a directory, in the dtype of its weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", attn_implementation=attn_implementation
    )
    return model.eval()
