"""The algorithms, one module each: `flowrl.agents.<name>`; here they are looked up by name, and built.

A module has a record `Config` and `make(config, spec) -> Agent`. One that serves several names has `NAMES`, their
configurations, as well.
"""

import functools
import importlib
import pkgutil
from types import ModuleType
from typing import Any, NoReturn

import jax

from flowrl.agent import Agent
from flowrl.errors import UserError, suggestion
from flowrl.networks import Spec


def names() -> list[str]:
    """Returns the names of all agents, sorted."""
    return sorted(name for module in _files() for name in _served(module))


def load(name: str) -> ModuleType:
    """Imports the module of an agent.

    Raises:
        UserError: There is no such agent.
    """
    for module in sorted(_files(), key=lambda module: module != name):  # its own file first
        if name in _served(module):
            return importlib.import_module(f"{__name__}.{module}")
    raise UserError(f"unknown agent {name!r}{suggestion(name, names())}")


def default(name: str) -> Any:
    """Returns the configuration that an agent has by itself.

    Raises:
        UserError: There is no such agent.
    """
    module = load(name)
    several = vars(module).get("NAMES")
    return several[name] if several else module.Config()


def build(name: str, config: Any, spec: Spec) -> Agent[Any]:
    """Returns an agent; the same one, whose programs are compiled already, where nothing but numbers differs.

    Args:
        name: Its name.
        config: Its configuration, of which only the structure counts: `init` takes the numbers.
        spec: The environment's shapes.

    Raises:
        UserError: There is no such agent.
        TypeError: It reads a traced field while it is built, which would fix one run's value for all.
    """
    return _built(name, jax.tree.structure(config), spec)


@functools.lru_cache(maxsize=64)
def _built(name: str, structure: Any, spec: Spec) -> Agent[Any]:
    config = jax.tree.unflatten(structure, [_Traced()] * structure.num_leaves)
    agent: Agent[Any] = load(name).make(config, spec)
    return agent


def _files() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


@functools.cache
def _served(module: str) -> tuple[str, ...]:
    """Returns the names that a module serves."""
    return tuple(vars(importlib.import_module(f"{__name__}.{module}")).get("NAMES", (module,)))


class _Traced:
    """Stands for a traced field where networks are built; whatever asks for its value is told that there is none."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a traced field was read while networks are built; runs may differ in it, so declare it static")

    __bool__ = __float__ = __int__ = __index__ = __array__ = __jax_array__ = __neg__ = __abs__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = _refuse
    __hash__ = object.__hash__
