"""The library: scenarios, models and GPUs that can be named instead of described."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from scenarios.errors import InputError, did_you_mean
from scenarios.gpu_library import GPUS_FILE as GPUS_FILE
from scenarios.gpu_library import gpu as gpu
from scenarios.gpu_library import gpu_name as gpu_name
from scenarios.gpu_library import gpus as gpus
from scenarios.model_library import is_model as is_model
from scenarios.model_library import model as model
from scenarios.model_library import model_config as model_config
from scenarios.model_library import model_ids as model_ids
from scenarios.model_library import model_name as model_name
from scenarios.model_library import model_names as model_names
from scenarios.model_library import model_path as model_path
from scenarios.yaml_file import Loader as Loader
from scenarios.yaml_file import PlainNumberError as PlainNumberError
from scenarios.yaml_file import find_file as find_file
from scenarios.yaml_file import load_yaml as load_yaml
from scenarios.yaml_file import read_yaml as read_yaml
from scenarios.yaml_file import read_yaml_input as read_yaml_input

ROOT = Path(__file__).parent
NOT_SCENARIOS = {"models", "sizing"}  # folders


def scenario_names() -> list[str]:
    """Scenarios that can be named; those of a folder as ``validation/tiny-cpu``."""
    return sorted(_scenarios())


def scenario_path(name: str) -> Path:
    """The file of a scenario given by path or by library name."""
    given = Path(name)
    library = _scenarios()
    if given.is_file():
        return given
    if name in library:  # before a folder of that name, which may hold its runs
        return library[name]
    if given.exists():
        raise InputError(f"{name}: a folder, expected a scenario file")
    folders = {PurePosixPath(one).parent.as_posix() for one in library}
    plain = name.removesuffix(".yaml")
    meant = plain if PurePosixPath(plain).parent.as_posix() in folders else given.stem
    raise InputError(f"{name}: no such scenario file; {did_you_mean(meant, library)}")


def _scenarios() -> dict[str, Path]:
    """Files of the library's scenarios by name; models, GPUs and sizings are none."""
    files = [path for path in ROOT.glob("*.yaml") if path != GPUS_FILE]
    files += [path for path in ROOT.glob("*/*.yaml") if path.parent.name not in NOT_SCENARIOS]
    return {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(files)}
