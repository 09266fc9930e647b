"""What is installed, and with what: the distribution, its requirements, and what others' releases may change."""

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from commands import ROOT
from packaging.markers import default_environment
from packaging.requirements import Requirement

from flowrl import agents
from flowrl.envs import making
from flowrl.errors import SharedError, UserError
from flowrl.machine import hosts, packages, provenance

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
NEEDS_OGBENCH = "pip install --no-deps ogbench dm-control"

BUILD = """
import sys
from setuptools import build_meta
print("\\n" + getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
USE = """
import sys
from pathlib import Path
from flowrl import agents
from flowrl.collection import experts
from flowrl.experiment import presets
from flowrl.reports import published
assert len(agents.names()) == int(sys.argv[2]), agents.names()
for name in agents.names():
    agents.default(name)
assert len(presets.datasets("gcbc")) > 50
assert experts.shipped("ant")
assert published.of_task("cube-double-play-singletask")
for name, module in list(sys.modules.items()):  # what is missing may be found where the repository is installed
    if name.partition(".")[0] == "flowrl":
        assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
"""


def build(kind: str, folder: Path, out: Path) -> Path:
    """Builds `sdist` or `wheel` of the project in a folder and returns its path."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out / made.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_distribution_works_outside_of_the_repository(tmp_path: Path) -> None:
    """A wheel, built of the source distribution: agents are real files there, not the repository's link."""
    source = tmp_path / "source"
    for name in ("flowrl", "agents"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    for name in ("README.md", "LICENSE"):
        (source / name).touch()
    shutil.unpack_archive(build("sdist", source, tmp_path), tmp_path / "sdist")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    assert not [path for path in unpacked.rglob("*") if path.is_symlink()]
    shutil.unpack_archive(build("wheel", unpacked, tmp_path), tmp_path / "wheel", "zip")
    command = [sys.executable, "-c", USE, str(tmp_path / "wheel"), str(len(agents.names()))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "wheel")}
    used = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr


def requirements() -> list[Requirement]:
    """Returns what README's commands install, beside what it depends on."""
    lines = (ROOT / "requirements.txt").read_text() + SETUP["options.extras_require"]["test"]
    named = [line for line in lines.splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in [*named, "ogbench>=1.2", "dm-control"]]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_exact_version(python: str) -> None:
    pinned: dict[str, list[str]] = {}
    here: Any = default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        found = Requirement(line) if line and not line.startswith("#") else None
        if found is not None and (found.marker is None or found.marker.evaluate(here)):
            (specifier,) = found.specifier
            assert specifier.operator == "==", line
            pinned.setdefault(found.name.lower().replace("_", "-"), []).append(specifier.version)
    for wanted in requirements():
        if wanted.marker is None or wanted.marker.evaluate(here):
            (version,) = pinned[wanted.name.lower().replace("_", "-")]
            assert wanted.specifier.contains(version), wanted
    assert ("labmaze" in pinned) == (python in ("3.11", "3.12"))


def test_constraints_name_no_place_to_install_from() -> None:
    assert not re.search(r"://|@|--|^/", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["main", "test"])
def test_commands_of_the_readme_install_the_exact_versions(name: str) -> None:
    def printed(**environment: str) -> str:
        command = ["bash", str(ROOT / ".ci" / "readme"), name]
        return subprocess.run(
            command, env=os.environ | environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    command = printed(PYTHON="python3.99")
    assert command.startswith("python3.99 -m venv .venv && ")
    assert command.replace("python3.99", "python3", 1) in (ROOT / "README.md").read_text().splitlines()
    installing = [part for part in command.split(" && ") if " install " in part]
    assert all("-c constraints.txt" in part for part in installing)
    assert any(part.endswith("--no-deps ogbench dm-control") for part in installing)


def test_the_shortened_main_command_makes_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r'python -c "(.*)" "\$scratch/walks.npz"', (ROOT / ".ci" / "main").read_text())
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "walks.npz")])
    exec(code, {})
    with np.load(tmp_path / "walks.npz") as file:
        assert file["observations"].shape == (120, 2)


def test_ogbench_without_its_packages_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from Python 3.13 on, where flowrl alone is installed."""
    monkeypatch.delitem(gymnasium.registry, "pointmaze-medium-v0", raising=False)
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(UserError, match=f"needs the package ogbench .*; install it with: {NEEDS_OGBENCH}, or"):
        making.make("pointmaze-medium-v0")
    gymnasium.register("Asks-v0", entry_point=asking)
    with pytest.raises(
        UserError, match=f"Asks-v0 cannot be made here .*; install it with: {NEEDS_OGBENCH}, mend it or"
    ):
        making.make("Asks-v0")
    gymnasium.registry.pop("Asks-v0")
    assert packages.remedy(ModuleNotFoundError("x", name="mujoco_py")) == "install what it asks for"


def asking(**_: Any) -> gymnasium.Env:
    """An environment whose import fails, as OGBench's manipulation does."""
    raise ModuleNotFoundError("No module named 'dm_control.mjcf'", name="dm_control.mjcf")


def test_a_missing_package_has_no_version() -> None:
    found = provenance.versions("numpy", "no-such-package")
    assert set(found) == {"flowrl", "python", "numpy"}
    assert found["numpy"] == importlib.metadata.version("numpy")


def test_nothing_private_of_dependencies_is_used() -> None:
    """Names that begin with an underscore may change with any release."""
    private = re.compile(
        r"\b(jax|jaxlib|flax|optax|chex|orbax|gymnasium|ogbench|mujoco|numpy)(\.\w+)*(\._[a-z]| import _)"
    )
    files = [file for name in ("flowrl", "agents", "experiments", "docs") for file in (ROOT / name).rglob("*.py")]
    assert len(files) > 60
    assert {str(file): found[0] for file in files if (found := private.search(file.read_text()))} == {}


@pytest.mark.parametrize(
    "module", ["flowrl.training.loop", "flowrl.agents.fql", "loaded_main", "test_loop", "conftest"]
)
def test_a_warning_of_our_own_is_an_error(module: str) -> None:
    with pytest.raises(RuntimeWarning):
        exec("import warnings; warnings.warn('ours', RuntimeWarning)", {"__name__": module})


@pytest.mark.parametrize("module", ["jax.numpy", "ogbench", "gymnasium.spaces.box"])
def test_a_warning_of_a_dependency_is_none(module: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        exec("import warnings; warnings.warn('theirs', RuntimeWarning)", {"__name__": module})
    assert [str(warning.message) for warning in told] == ["theirs"]
    exec("import warnings; warnings.warn('new name', DeprecationWarning)", {"__name__": "flowrl.training.loop"})


def test_messages_of_any_length_reach_all_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for two hosts; what their devices would gather is gathered here."""
    from jax.experimental import multihost_utils
    from orbax.checkpoint import multihost

    meeting, sent, keys, found = threading.Barrier(2, timeout=20), {}, set(), {}
    names = {"host 0": 0, "host 1": 1}

    def allgather(array: np.ndarray) -> np.ndarray:
        sent[names[threading.current_thread().name]] = array
        meeting.wait()
        stacked = np.stack([sent[0], sent[1]])
        meeting.wait()
        return stacked

    def say(values: list[Any]) -> None:
        found[threading.current_thread().name] = [hosts.gather(value) for value in values]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    monkeypatch.setattr(multihost, "get_barrier_sync_fn", lambda: lambda *, key, timeout_ms: keys.add(key))
    messages = ([None, "ä" * 40, {"loss": 0.5}, []], [[1, 2, 3], "", None, list(range(300))])
    started = [threading.Thread(target=say, args=(messages[host],), name=name) for name, host in names.items()]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(timeout=60)
    expected = [list(pair) for pair in zip(*messages, strict=True)]
    assert found == {"host 0": expected, "host 1": expected}
    assert len(keys) >= len(expected)  # no barrier is met twice


def test_hosts_with_unequal_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, process_index: int):
            self.process_index = process_index

    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(0), Device(1), Device(1)])
    hosts.require_equal_devices()
    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(0), Device(1)])
    with pytest.raises(SharedError, match="host 0 has 2 devices, but host 1 has 1; give all equally many"):
        hosts.require_equal_devices()


FAULTS = {
    "flowrl/machine/hosts.py": [
        ("row[:size].tobytes()", "row.tobytes()", "test_messages_of_any_length_reach_all_hosts"),
        ("int(sizes.max())", "int(own.size)", "test_messages_of_any_length_reach_all_hosts"),
        ("{next(_rounds)}", "{0}", "test_messages_of_any_length_reach_all_hosts"),
        ("number != found[0]", "number > found[0]", "test_hosts_with_unequal_devices_are_refused"),
        (
            "from orbax.checkpoint import multihost",
            "from orbax.checkpoint._src.multihost import multihost",
            "test_nothing_private_of_dependencies_is_used",
        ),
    ],
    "setup.cfg": [
        ("flowrl.experiment.presets = */*.csv\n", "", "test_the_distribution_works_outside_of_the_repository"),
        (
            "    flowrl.*\n",
            "    flowrl.data\n    flowrl.presets\n",
            "test_the_distribution_works_outside_of_the_repository",
        ),
        ("error:::(flowrl|", "error:::(flow_rl|", "test_a_warning_of_our_own_is_an_error"),
        ("error:::(flowrl|", "error:::(|", "test_a_warning_of_a_dependency_is_none"),
        ("    ignore::DeprecationWarning\n", "", "test_a_warning_of_a_dependency_is_none"),
    ],
    "requirements.txt": [
        ("scipy>=1.14", "scipy>=9", "test_every_requirement_has_one_exact_version"),
    ],
    "flowrl/machine/packages.py": [
        ('("ogbench", "dm_control")', '("ogbench",)', "test_ogbench_without_its_packages_is_an_error_with_the_remedy"),
    ],
    "flowrl/envs/making.py": [
        ("{module or 'ogbench'}", "{module}", "test_ogbench_without_its_packages_is_an_error_with_the_remedy"),
    ],
    "flowrl/machine/provenance.py": [
        ("importlib.metadata.PackageNotFoundError", "KeyError", "test_a_missing_package_has_no_version"),
    ],
}
