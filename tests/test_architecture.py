"""The imports between modules of the package and of experiments."""

import ast
from collections.abc import Mapping
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest
from small import REPOSITORY

# These know no diffusion: of the rest of the package they import the vocabulary and each other as stated.
FREE_OF_DIFFUSION = {"networks": set(), "data": set(), "augment": set(), "metrics": {"data"}}
VOCABULARY = {"cache", "distributed", "errors", "rng", "types", "spectral", "images", "records", "paths"}
ENTRY_POINTS = {
    "warm_lightning",
    "warm_lightning.cli",
    "warm_lightning.data.lmdb_walk",
    "warm_lightning.interop.deepinv",
    "experiments.__main__",
}
"""Modules that users start or import. The others are those of `STARTED`."""
STARTED = ("warm_lightning.commands.", "experiments.benchmarks.", "experiments.studies.")
"""Packages whose modules are commands: of `warm`, by their names, or of `python -m`."""


def modules() -> dict[str, Path]:
    """The files of the package and of experiments by their dotted names."""
    paths = [path for root in ("warm_lightning", "experiments") for path in (REPOSITORY / root).rglob("*.py")]
    return {".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports(name: str, known: Mapping[str, Path]) -> set[str]:
    """The modules among `known` that a module imports, at its top or inside of functions."""
    found = set()
    package = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            inner = {alias.name: f"{module}.{alias.name}" for alias in node.names}
            found |= {path if path in known else module for path in inner.values()}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & known.keys()) - {name}


def rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports between rooms: a folder or a file directly below the package or experiments is one room."""
    found: dict[str, set[str]] = {}
    for module, others in graph.items():
        arrows = found.setdefault(room(module), set())
        arrows |= {room(other) for other in others}
    return {name: others - {name} for name, others in found.items()}


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floors(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The modules from the ground up: each imports from lower floors only.

    Raises:
        CycleError: there is a circle, so that some arrow runs back up whatever the floors are.
    """
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    found = []
    while sorter.is_active():
        floor = set(sorter.get_ready())
        sorter.done(*floor)
        found.append(floor)
    return found


GRAPH = {name: imports(name, modules()) for name in modules()}


def test_files_import_without_a_circle() -> None:
    assert len(floors(GRAPH)) > 5


def test_rooms_import_downwards_only() -> None:
    # The package first, then experiments: nothing in the package knows an experiment.
    height = {name: i for i, floor in enumerate(floors(rooms(GRAPH))) for name in floor}
    assert height["warm_lightning.types"] < height["warm_lightning.processes"] < height["warm_lightning.samplers"]
    assert height["warm_lightning.model"] < height["warm_lightning.module"] < height["warm_lightning.callbacks"]
    package = [name for name in GRAPH if name.startswith("warm_lightning")]
    assert not [(name, other) for name in package for other in GRAPH[name] if other.startswith("experiments")]


def test_every_module_is_used() -> None:
    imported = set().union(*GRAPH.values())
    packages = {name.rpartition(".")[0] for name in GRAPH}
    unused = {name for name in GRAPH if name not in imported | ENTRY_POINTS | packages}
    assert not {name for name in unused if not name.startswith(STARTED)}


@pytest.mark.parametrize("name", FREE_OF_DIFFUSION)
def test_parts_that_know_no_diffusion(name: str) -> None:
    allowed = VOCABULARY | FREE_OF_DIFFUSION[name] | {name}
    members = [module for module in GRAPH if room(module) == f"warm_lightning.{name}"]
    assert members
    for module in members:
        assert {room(other).rpartition(".")[2] for other in GRAPH[module]} <= allowed, module
