"""What every test runs under: shape annotations that are checked, no network, one thread, a fixed seed."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import jaxtyping
import pytest
import torch
import transformers

jaxtyping.install_import_hook("minilm", "typecheck.check")  # before minilm is imported for the first time
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # small models gain nothing from more, and two test runs on one machine would fight


def pytest_addoption(parser):
    parser.addoption(
        "--impl", default="solutions", help="whose answers tests/exercises checks: solutions or exercises"
    )


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def without_shape_checks():
    """As a user runs it: wrong shapes and types reach the package's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
