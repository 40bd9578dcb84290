"""What is measured on, in words: device, driver, clocks and versions; or why it cannot be used."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import torch

from calibrate.device.clocks import nvidia_smi


class CalibrationError(RuntimeError):
    """A calibration that cannot start or go on; a line or two that say why and what to do."""


def require_device(device: str) -> torch.device:
    """The device, ready to use. Raises CalibrationError that says what is missing."""
    if device == "cpu":
        return torch.device("cpu")
    if device != "cuda":
        raise CalibrationError(f"--device {device}: unknown; allowed: cuda, cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return torch.device("cuda", torch.cuda.current_device())
    remedy = "; --device cpu calibrates this machine's processor instead"
    if torch.version.cuda is None:
        raise CalibrationError(
            f"no CUDA GPU can be used: this torch ({torch.__version__}) was built without CUDA"
            + remedy
        )
    seen = nvidia_smi("name,driver_version")
    if not seen:
        raise CalibrationError("no CUDA GPU found (nvidia-smi sees none either)" + remedy)
    name, driver = (seen[0] + ["?", "?"])[:2]
    told = " ".join(str(caught[0].message).split()) if caught else "torch finds no device"
    raise CalibrationError(
        f"nvidia-smi sees {name} with driver {driver}, but torch {torch.__version__} for CUDA "
        f"{torch.version.cuda} cannot use it ({told[:200]}): update the driver, or install a torch "
        f"for its CUDA version{remedy}"
    )


def device_name(device: torch.device | str) -> str:
    """The GPU's name as its driver gives it, or the processor's."""
    device = torch.device(device)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"CPU {line.partition(':')[2].strip()}"
    return f"CPU {platform.processor() or platform.machine()}"


def device_id(device: torch.device) -> str | None:
    """What nvidia-smi knows the GPU by."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}"


def environment(device: torch.device | str) -> dict[str, str]:
    """Device, driver, clocks and versions, for the head of a table."""
    device = torch.device(device)
    told = {"device": device_name(device)}
    if device.type == "cuda":
        query = "driver_version,clocks.sm,clocks.max.sm,power.limit"
        answer = nvidia_smi(query, gpu=device_id(device)) or nvidia_smi(query)
        driver, *clocks = answer[0] if answer else ["unknown"]
        told |= {
            "driver": driver,
            "sm clock, max (MHz), power limit (W)": ", ".join(clocks),
            "cuda": str(torch.version.cuda),
        }
    else:
        told["threads"] = str(torch.get_num_threads())
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = "none"
    return told | {
        "torch": str(torch.__version__),
        "triton": triton_version,
        "python": platform.python_version(),
    }
