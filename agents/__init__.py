"""The algorithms, a module `flowrl.agents.<name>` for each, or for several names."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from flowrl.agent import Agent
from flowrl.errors import UserError, suggestion
from flowrl.networks import Spec


def names() -> list[str]:
    """Returns the names of all agents, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Imports the module of an agent.

    Raises:
        UserError: There is no such agent.
    """
    if name not in names():
        raise UserError(f"unknown agent {name!r}{suggestion(name, names())}")
    return importlib.import_module(f"flowrl.agents.{name}")


def default(name: str) -> Any:
    """Returns the configuration of an agent that is not told anything.

    Raises:
        UserError: There is no such agent.
    """
    return load(name).Config()


def build(name: str, config: Any, spec: Spec) -> Agent[Any]:
    """Builds an agent.

    Raises:
        UserError: There is no such agent.
    """
    return load(name).make(config, spec)
