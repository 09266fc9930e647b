"""Any environment that is registered with Gymnasium, one's own among them, with the user's own file of data."""

import contextlib
import dataclasses
import pickle
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import gymnasium

from flowrl.envs import locomotion, making
from flowrl.errors import UserError, suggestion
from flowrl.tasks import sources
from flowrl.tasks.sources import Source
from flowrl.tasks.task import Task, registered_limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registered(Task):
    """An environment of Gymnasium's registry: `Pendulum-v1`, or `module:Name-v0` where a module registers it."""

    has_data: ClassVar[bool] = False
    bounded: ClassVar[bool] = True

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Resolves a registered name, or `module:Name-v0`, an environment that importing the module registers.

        Raises:
            UserError: The module cannot be imported, or does not register the name.
        """
        if name in locomotion.NAMES:
            return cls(name=name, env_id=name, module=locomotion.__name__)
        if ":" in name:
            return cls._of_module(name)
        return cls._of_registry(name, name) if name in gymnasium.registry else None

    @classmethod
    def names(cls) -> Iterable[str]:
        """Returns the names that are registered, and OGBench's tasks that flowrl registers when they are asked for."""
        return [*locomotion.NAMES, *gymnasium.registry]

    @classmethod
    def _of_module(cls, name: str) -> Self:
        module, _, env_id = name.partition(":")
        try:
            making.imported(module)
        except ImportError as error:
            raise UserError(
                f"--env={name}: cannot import {module!r} ({error}); start in its folder, or name that in PYTHONPATH"
            ) from error
        if env_id not in gymnasium.registry:
            near = suggestion(env_id, gymnasium.registry)
            raise UserError(f"--env={name}: importing {module} registers no {env_id!r}{near}; see gymnasium.register")
        return cls._of_registry(name, env_id, module)

    @classmethod
    def _of_registry(cls, name: str, env_id: str, module: str = "") -> Self:
        """Returns an environment of Gymnasium's registry, with what is registered there where others have done that.

        So worker processes need not know the name, for nothing may register it there.
        """
        spec = gymnasium.registry[env_id]
        entry = spec.entry_point
        maker = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
        kwargs: tuple[tuple[str, Any], ...] = ()
        with contextlib.suppress(Exception):  # whatever cannot be sent to another process must be registered there
            pickle.dumps(spec)
            if maker.partition(".")[0] not in ("gymnasium", "ogbench"):
                kwargs = (("spec", spec),)
        return cls(name=name, env_id=env_id, kwargs=kwargs, module=module)

    def _own(self, data: str, workers: int | None) -> Source:
        if data == "collected":
            raise sources.uncollectable(self.name, "use ")
        raise UserError(
            f"{self.name} has no dataset of its own; give a file with --data=PATH (docs/data.md says which fields it "
            "needs)"
        )

    def _limit(self) -> int | None:
        return registered_limit(self)
