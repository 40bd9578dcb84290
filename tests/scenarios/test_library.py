"""Every scenario, model and GPU that is shipped can be used as it is."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from orcast.composed import compose
from scenarios import library
from scenarios.errors import InputError
from scenarios.forecast.deployment import deploy
from scenarios.forecast.forecast import forecast
from scenarios.schema.load import load_scenario
from scenarios.sizing.load import load_sizing
from sim.kv.memory import memory_budget
from sim.model.parallelism import Parallelism
from sim.model.spec import ModelSpec
from tests import needs
from tests.orcast.command_line import AZURE_TRACE, orcast
from tests.sim.latency.tables import small_table_folder

SHIPPED = [name for name in library.scenario_names() if "/" not in name]
IN_FOLDERS = [name for name in library.scenario_names() if "/" in name]
NEEDED = {"quickstart", "azure-conversation", "static-vs-continuous", "kv-waste", "million"}


def settings_for(name: str) -> list[str]:
    """What a shipped scenario leaves to its user."""
    if name == "azure-conversation":
        if not AZURE_TRACE.is_file():
            needs.skip("data", AZURE_TRACE.name)
        return [f"workload.trace={AZURE_TRACE}"]
    return []


def test_the_library_holds_what_the_readme_promises() -> None:
    assert set(SHIPPED) >= NEEDED
    assert len(library.model_names()) >= 60
    assert len(library.gpus()) >= 10


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_deploys(name: str) -> None:
    scenario, origin = load_scenario(name, settings_for(name))
    assert scenario.name == name, "its name in the library and in the file are one"
    assert scenario.description
    if scenario.latency.source == "aiconfigurator":
        try:
            version("aiconfigurator-core")
        except PackageNotFoundError:
            needs.skip("tables")
    deployment = deploy(scenario, origin=origin, compose=compose)
    workload, memory = deployment.workload, deployment.memory
    assert not [note for note in deployment.notes if "has no effect" in note]
    assert memory.num_gpu_blocks > 0
    assert (workload.prompt_tokens + workload.output_tokens).max() <= memory.slots


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_a_scenario_of_a_subfolder_is_valid_once_its_files_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = library.ROOT / f"{name}.yaml"
    settings = ["model=llama-3.1-8b", "hardware.gpu=rtx-4090", "latency.table=some-table"]
    if "lengths" not in library.read_yaml(path)["workload"]:
        settings.append("workload.trace=some.jsonl")
    scenario, origin = load_scenario(name, settings)
    assert (scenario.name, origin) == (path.stem, path)
    assert load_scenario(str(path), settings)[0] == scenario, "by name as by file"


def test_the_library_names_scenarios_in_folders_and_nothing_else() -> None:
    assert {"validation/tiny-cpu", "validation/vllm-replay"} <= set(IN_FOLDERS)
    assert {name.partition("/")[0] for name in IN_FOLDERS} == {"validation"}
    assert "gpus" not in SHIPPED


@pytest.mark.parametrize("name", ["gpus", "models/tiny", "models/tiny.json", "sizing/budget-1e22"])
def test_what_is_no_scenario_is_not_found_as_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{name}: no such scenario file; .*allowed: admission"):
        library.scenario_path(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("quickstrat", "quickstart"),
        ("scenarios/quickstrat.yaml", "quickstart"),
        ("validation/tiny-cpus", "validation/tiny-cpu"),
        ("validation/vllm-reply.yaml", "validation/vllm-replay"),
        ("tiny-cpu", "validation/tiny-cpu"),
    ],
)
def test_a_mistyped_name_is_told_the_one_that_was_meant(
    typed: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        library.scenario_path(typed)


def test_a_scenario_of_a_folder_runs_by_name_into_a_folder_of_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_table_folder(Path("mine/table"), gpu="rtx-4090")
    Path("mine/trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,90,5\n"
        "2023-11-16 18:00:01,40,7\n"
    )
    settings = ["model=llama-3.1-8b", "hardware.gpu=rtx-4090", "latency.table=mine/table",
                "workload.trace=mine/trace.csv", "engine.num_gpu_blocks_override=500"]  # fmt: skip
    flags = [part for setting in settings for part in ("--set", setting)]
    outcome = orcast("run", "validation/vllm-replay", *flags)
    assert outcome.status == 0, outcome.stderr
    assert Path("runs/vllm-replay/report.html").is_file()
    Path("validation/vllm-replay").mkdir(parents=True)
    path = library.scenario_path("validation/vllm-replay")
    assert path == library.ROOT / "validation/vllm-replay.yaml", "a folder does not hide it"


@pytest.mark.parametrize("name", ["budget-1e22", "sizing/budget-1e22"])
def test_a_sizing_of_the_library_goes_by_its_name_with_and_without_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_sizing(name)[1] == library.ROOT / "sizing" / "budget-1e22.yaml"


def test_a_mistyped_sizing_is_told_the_one_that_was_meant() -> None:
    with pytest.raises(InputError, match="did you mean 'budget-1e22'"):
        load_sizing("sizing/budget-1e23")


def test_the_azure_conversation_is_whole() -> None:
    scenario, origin = load_scenario("azure-conversation", settings_for("azure-conversation"))
    workload = deploy(scenario, origin=origin).workload
    assert len(workload) == 19_366
    assert workload.arrival_s[-1] == pytest.approx(3507, abs=120), "about an hour"


def test_azure_conversation_without_its_trace_says_how_to_name_it() -> None:
    with pytest.raises(ValueError, match=r"--set workload\.trace=FILE"):
        load_scenario("azure-conversation")


def test_a_scenario_file_can_be_named_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (library.ROOT / "quickstart.yaml").read_text()
    Path("own.yaml").write_text(text.replace("model: llama-3.1-8b", "model: own-model"))
    config = (library.ROOT / "models/llama-3.1-8b.json").read_text()
    Path("own-model").mkdir()
    Path("own-model/config.json").write_text(config)
    for path in ("own.yaml", tmp_path / "own.yaml"):
        scenario, origin = load_scenario(str(path))
        assert deploy(scenario, origin=origin).model.name == "own-model"
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    scenario, origin = load_scenario("../own.yaml")
    deployed = deploy(scenario, origin=origin)
    assert deployed.model.name == "own-model", "found beside the scenario file"


def test_a_folder_by_a_scenarios_name_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert library.scenario_path("quickstart") == library.ROOT / "quickstart.yaml"


def splits(model: ModelSpec, degree: int) -> bool:
    with suppress(ValueError):
        model.check_tensor_parallel(degree)
        return True
    return False


@pytest.mark.parametrize(("given", "name"), library.model_ids().items())
def test_every_id_names_a_model_of_the_library(given: str, name: str) -> None:
    assert name in library.model_names()
    assert library.model_path(given) == library.model_path(name)


def test_an_id_is_known_however_it_is_written_and_a_wrong_one_is_told_the_nearest() -> None:
    assert library.model("QWEN/qwen3-32b").name == "qwen3-32b"
    with pytest.raises(InputError, match=r"did you mean 'qwen/qwen3-32b'"):
        library.model("Qwen/Qwen3-32")


def test_a_folder_of_that_id_comes_before_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("Qwen/Qwen3-32B")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((library.ROOT / "models/tiny.json").read_text())
    assert library.model("Qwen/Qwen3-32B").num_layers == library.model("tiny").num_layers


@pytest.mark.parametrize("name", library.model_names())
def test_every_model_fits_on_enough_of_the_largest_gpus(name: str) -> None:
    model = library.model(name)
    gpus = next(count for count in (8, 4, 2, 1) if splits(model, count))
    stages = 1 if model.weight_bytes() < 1e12 else 2
    budget = memory_budget(model, library.gpu("mi300x"), parallelism=Parallelism(gpus, stages))
    assert budget.most_sequences(1000) >= 10
    assert model.name == name


@pytest.mark.parametrize("name", sorted(library.gpus()))
def test_every_gpu_serves_a_small_model(name: str) -> None:
    settings = [f"hardware.gpu={name}", "model=qwen3-0.6b", "workload.num_requests=20"]
    scenario, origin = load_scenario("quickstart", settings)
    summary = forecast(scenario, origin=origin).summary
    assert summary["completed"] == 20
    assert summary["latency"]["measured"] is False
    assert summary["latency"]["label"] == (f"roofline (analytic, unmeasured): qwen3-0.6b on {name}")


def test_a_better_gpu_answers_faster() -> None:
    def mean_tpot_ms(gpu: str) -> float:
        settings = [f"hardware.gpu={gpu}", "workload.num_requests=200"]
        scenario, origin = load_scenario("quickstart", settings)
        figure = forecast(scenario, origin=origin).summary["mean_tpot_ms"]
        assert isinstance(figure, float)
        return figure

    speeds = [mean_tpot_ms(gpu) for gpu in ("b200", "h200-sxm", "h100-sxm", "a100-80gb", "l40s")]
    assert speeds == sorted(speeds)


def test_the_million_is_offered_eighty_per_cent_of_what_can_be_served() -> None:
    # The rate in the file against the rate at which the same requests drain when all wait.
    settings = ["workload.num_requests=20000", "workload.arrivals={process: all_at_once}"]
    saturated, origin = load_scenario("million", settings)
    drained = forecast(saturated, origin=origin).records.requests["finished_s"]
    # Leave out the ends, where the batch fills and empties.
    early, late = np.percentile(drained, [10, 90])
    capacity = 0.8 * len(drained) / (late - early)
    offered = load_scenario("million")[0].workload.arrivals
    assert offered is not None
    assert offered.request_rate is not None
    assert offered.request_rate / capacity == pytest.approx(0.8, abs=0.03)


def test_a_table_of_another_gpu_is_remarked_upon(tmp_path: Path) -> None:
    from orcast import simulate

    folder = small_table_folder(tmp_path / "table", gpu="H200-SXM")
    settings = {"latency.table": str(folder), "workload.num_requests": 5}
    assert simulate("quickstart", settings).summary["warnings"] == []
    warnings = simulate("quickstart", {**settings, "hardware.gpu": "b200"}).summary["warnings"]
    assert warnings == ["the latency table was measured on H200-SXM, hardware.gpu is b200"]


CLASSES = (
    "{chat: {share: 1, lengths: {prompt: {distribution: uniform, min: 10, max: 20}, "
    "output: {distribution: fixed, tokens: 5}}}, report: {share: SHARE, lengths: {prompt: "
    "{distribution: fixed, tokens: 900}, output: {distribution: fixed, tokens: 50}}}}"
)


def test_a_mixture_of_classes_has_each_ones_lengths_and_says_which_is_which() -> None:
    settings = ["workload.lengths=null", "workload.num_requests=400"]
    few, many = (
        load_scenario("quickstart", [*settings, f"workload.classes={CLASSES}".replace("SHARE", n)])
        for n in ("1", "3")
    )
    requests = forecast(few[0], origin=few[1]).records.requests
    reports = requests["request_class"] == "report"
    assert 150 < reports.sum() < 250
    assert (requests["prompt_tokens"][reports] == 900).all()
    assert (requests["prompt_tokens"][~reports] <= 20).all()
    # Another share leaves the lengths of those that stay as they were.
    others = forecast(many[0], origin=many[1]).records.requests
    stay = (others["request_class"] == "chat") & ~reports
    assert stay.sum() > 50
    assert (others["prompt_tokens"][stay] == requests["prompt_tokens"][stay]).all()
