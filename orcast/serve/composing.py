"""Everything that serving takes, put together from what the command line says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from orcast.cli_version import version
from orcast.composed import compose
from orcast.listening import listen
from orcast.serve.app import Endpoint, serving_app
from orcast.serve.desk import Desk
from orcast.serve.faults import Faults, failure
from orcast.serve.live_engine import LiveEngine
from orcast.serve.live_state import SETTINGS, LiveState
from orcast.serve.recording import write_recording
from orcast.serve.server import run_server
from orcast.serve.texts import Characters, FromFile, Tokens
from reports.page.own_names import OwnNames, names_of
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.live import LiveOptions
from scenarios.forecast.served import planned_failures
from scenarios.schema.load import load_scenario
from scenarios.schema.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be served, and how."""

    scenario: str
    overrides: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    speed: float = 1.0
    names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    tokenizer: Path | None = None
    fail: tuple[str, ...] = ()
    cuts: bool = False
    error_rate: float = 0.0
    drop_rate: float = 0.0
    slow_start_s: float = 0.0
    due_times: bool = False
    record: Path | None = None


@dataclass(frozen=True, slots=True)
class Composed:
    """What serves, before anybody listens."""

    endpoint: Endpoint
    engine: LiveEngine
    scenario: Scenario
    origin: Path


def composed(wanted: Wanted, own_names: OwnNames) -> Composed:
    """Load, deploy and wire up. Raises InputError."""
    from reports.live.page import live_page

    scenario, origin = load_scenario(wanted.scenario, wanted.overrides)
    deployment = deploy(scenario, origin=origin, compose=compose, as_cluster=True)
    if any(group.classes for group in scenario.cluster.groups):
        raise InputError(
            f"{origin}: cluster.groups: groups for classes of requests are forecast, not served: "
            "clients do not say what class they are of"
        )
    if deployment.workload.samples is not None and deployment.workload.samples.beam is not None:
        raise InputError(f"{origin}: workload.beam_search: beams are not served, only forecast")
    failures = planned_failures(scenario)
    failures += [failure(text, deployment.num_replicas) for text in wanted.fail]
    tokens: Tokens = Characters() if wanted.tokenizer is None else FromFile(wanted.tokenizer)
    names = wanted.names or (scenario.model,)
    engine = LiveEngine(
        LiveOptions(deployment, failures, keep=wanted.record is not None),
        model=names[0], speed=wanted.speed, cuts=wanted.cuts, tells_due=wanted.due_times,
    )  # fmt: skip
    faults = Faults(wanted.error_rate, wanted.drop_rate, wanted.slow_start_s)
    desk = Desk(engine, tokens, names=names, seed=scenario.workload.seed)
    about = {
        "name": scenario.name, "model": names[0], "tokens": tokens.name,
        "replicas": deployment.num_replicas, "gpu": deployment.gpu.name,
        "latency": deployment.latency.label,
    }  # fmt: skip
    page = live_page(scenario.name, settings=SETTINGS, keyed=bool(wanted.api_keys))
    endpoint = Endpoint(
        desk, faults, LiveState(engine, faults, about=about), version(), page, own_names,
        wanted.api_keys,
    )  # fmt: skip
    return Composed(endpoint, engine, scenario, origin)


def serve_wanted(wanted: Wanted, *, warn: Callable[[str], None]) -> None:
    """Serve until interrupted, then write what was recorded."""
    from reports.run.writer import fresh_folder

    with ExitStack() as stack:
        listening = stack.enter_context(listen(wanted.host, wanted.port))
        folder = None
        if wanted.record is not None:
            folder = stack.enter_context(fresh_folder(wanted.record, option="--record"))
        made = composed(wanted, names_of(wanted.host, listening.getsockname()[0]))
        for note in made.engine.options.deployment.notes:
            warn(note)
        desk = made.endpoint.desk
        host = f"[{wanted.host}]" if ":" in wanted.host else wanted.host
        url = f"http://{host}:{listening.getsockname()[1]}"

        def ready() -> None:
            print(f"Serving {made.scenario.name} as {desk.names[0]}: {url}/v1 (Ctrl-C ends it)")
            print(f"Live page: {url}/   Metrics: {url}/metrics   Tokens: {desk.tokens.name}",
                  flush=True)  # fmt: skip

        with suppress(KeyboardInterrupt, SystemExit):  # how it is ended
            run_server(serving_app(made.endpoint), made.endpoint.state, listening, ready=ready)
        served = made.engine.close()
        if folder is not None:
            if served is None:
                raise InputError(
                    f"--record {wanted.record}: nobody asked for anything; not written"
                )
            write_recording(folder, made.engine, *served, origin=made.origin)
    if wanted.record is not None:
        print(f"Recorded: {wanted.record / 'report.html'}")
