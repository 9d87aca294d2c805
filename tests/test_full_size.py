"""Models at their real size, on the meta device: names, shapes and counts without memory."""

import copy

import pytest
import torch
import transformers
from real_configs import PARAMETERS, REAL_CONFIGS

import minilm
from minilm import families


@pytest.mark.parametrize("name", REAL_CONFIGS)
def test_every_tensor_has_its_place(name):
    """What transformers would save and what minilm keeps are the same names and shapes, none left over."""
    family, config = families.read_config(REAL_CONFIGS[name])
    values = copy.deepcopy(REAL_CONFIGS[name])  # transformers writes into the dictionaries that it is given
    with torch.device("meta"):
        model = minilm.CausalLM(config)
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values))
    ours = {family.file_name(name): value.shape for name, value in model.state_dict().items()}
    theirs = {family.canonical(name): value.shape for name, value in reference.state_dict().items()}
    if config.tie_embeddings:
        del theirs[family.file_name("lm_head.weight")]  # the table, listed a second time
    assert ours == theirs
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert reference.num_parameters() == PARAMETERS[name]
