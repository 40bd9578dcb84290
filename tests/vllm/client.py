"""vLLM's own load generator, many loads in one process: a line of arguments in, a line out.

Run as a script by a Python that has vLLM (`python -P tests/vllm/client.py`). Every line of the
input is a JSON list, arguments of `vllm bench serve`; each is answered by a line once that load has
been served. Loading vLLM takes longer than serving one.
"""

from __future__ import annotations

import json
import os
import sys

# What vLLM prints is not for whoever asks.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from vllm.benchmarks.serve import add_cli_args, main  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


def serve() -> None:
    """Each load as it is asked for."""
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    print(json.dumps("ready"), file=ANSWERS, flush=True)
    for line in sys.stdin:
        main(parser.parse_args(json.loads(line)))
        print(json.dumps("served"), file=ANSWERS, flush=True)


if __name__ == "__main__":
    serve()
