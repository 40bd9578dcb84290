"""Measures a device's latency tables, without what the command line needs besides.

python -m calibrate.measure --model-config CONFIG.json --out DIR --budget 8m
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from calibrate.device.environment import CalibrationError
from calibrate.measure.budget import budget_seconds
from calibrate.measure.calibration import Progress, calibrate
from calibrate.measure.setting import DTYPES, Setting
from calibrate.measure.target import partial_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The same without the command line's dependencies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model-config", type=Path, required=True, help="a config.json")
    parser.add_argument("--name", help="the model's, by default the file's")
    parser.add_argument("--out", type=Path, required=True, help="the table's folder")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget", default="8m", help="such as 8m or 90s")
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(DTYPES))
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--linear", choices=("triton", "best", "fastest"), help="dense products")
    parser.add_argument("--gpu", help="the GPU's name in the library, for the record")
    parser.add_argument("--share", type=Path, help="a folder of tables to take parts over from")
    options = parser.parse_args(arguments)
    said: list[str] = []

    def tell(state: Progress) -> None:
        if not said or said[-1] != state.part:
            said.append(state.part)
            print(f"{state.elapsed_s:6.0f} of {state.budget_s:.0f} s  {state.part}", flush=True)

    try:
        config = json.loads(options.model_config.read_text(encoding="utf-8"))
        setting = Setting(
            config,
            name=options.name or options.model_config.stem,
            out=options.out,
            device=options.device,
            budget_s=budget_seconds(options.budget),
            dtype=options.dtype,
            block_size=options.block_size,
            gpu=options.gpu,
            linear_backend=options.linear,
            share=options.share,
        )
        out = calibrate(setting, progress=tell)
    except (CalibrationError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = partial_folder(options.out)
        print(f"stopped; what was measured is in {kept}: the same command goes on", file=sys.stderr)
        return 130
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
