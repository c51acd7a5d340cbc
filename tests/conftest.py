"""What several tests dream with."""

from __future__ import annotations

import pytest
from tiny import tiny_contexts, tiny_model

from worldsim.contexts import ContextBank, open_contexts
from worldsim.world_model import WorldModel


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return tiny_model()


@pytest.fixture(scope="module")
def bank(model: WorldModel) -> ContextBank:
    return open_contexts(model, tiny_contexts())
