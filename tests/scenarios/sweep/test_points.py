"""The points of a sweep: how many, in which order, and under which hash."""

from pathlib import Path

import numpy as np
import pytest

from scenarios import gpu_library, library
from scenarios.errors import InputError
from scenarios.schema.load import load_scenario
from scenarios.sweep import point_key
from scenarios.sweep.axes import axis_from_text
from scenarios.sweep.points import Study, latin_hypercube, load_study

SIZES = "engine.max_num_seqs=8..32:x2"


def study(*axes: str, settings: list[str] | None = None, name: str = "quickstart") -> Study:
    return load_study(name, settings or [], [axis_from_text(axis) for axis in axes])


def test_every_combination_once_for_each_seed() -> None:
    found = study(SIZES, "engine.block_size=8,16", settings=["sweep.seeds=3", "workload.seed=7"])
    assert len(found.points) == 3 * 2 * 3
    assert found.seeds == (7, 8, 9)
    first = [(point.values["engine.max_num_seqs"], point.values["engine.block_size"], point.seed)
             for point in found.points]  # fmt: skip
    assert first[:4] == [(8, 8, 7), (8, 8, 8), (8, 8, 9), (8, 16, 7)]
    assert [point.setting for point in found.points] == sorted([*range(6)] * 3)
    for point in found.points:
        assert point.scenario is not None
        assert point.scenario.engine.max_num_seqs == point.values["engine.max_num_seqs"]
        assert point.scenario.workload.seed == point.seed


def test_seeds_may_be_listed() -> None:
    assert study(SIZES, settings=["sweep.seeds=[5, 1]"]).seeds == (5, 1)


def test_the_sweep_section_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    text = (library.ROOT / "quickstart.yaml").read_text()
    path.write_text(text + "sweep:\n  axes: {engine.block_size: '8..32:x2'}\n  seeds: 2\n")
    assert len(study(name=str(path)).points) == 6
    assert len(study("engine.block_size=64", name=str(path)).points) == 2
    assert len(study(SIZES, name=str(path)).points) == 18
    scenario, _ = load_scenario(str(path))
    assert "sweep" not in scenario.model_dump(mode="json"), "a single run has nothing of it"


def test_a_point_that_is_no_scenario_says_why_and_the_others_stay() -> None:
    found = study("engine.block_size=0,16")
    assert [point.scenario is None for point in found.points] == [True, False]
    assert found.points[0].refusal == "engine.block_size: 0: expected greater than or equal to 1"


def test_same_is_what_the_scenario_has_without_the_axis() -> None:
    study = load_study("speculation", axes=[axis_from_text("speculation=null,same")])
    plain, drafting = (point.scenario for point in study.points)
    assert plain is not None and plain.speculation is None
    assert (
        drafting is not None and drafting.speculation == load_scenario("speculation")[0].speculation
    )
    assert [point.values["speculation"] for point in study.points] == [None, "same"]


def test_a_path_that_is_missing_in_the_file_may_come_from_an_axis(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    text = (library.ROOT / "quickstart.yaml").read_text()
    path.write_text(text.replace("model: llama-3.1-8b\n", ""))
    with pytest.raises(InputError, match=r"own\.yaml: model: missing"):
        study(SIZES, name=str(path))
    found = study("model=llama-3.1-8b,qwen3-8b", name=str(path))
    assert [point.scenario is None for point in found.points] == [False, False]


@pytest.mark.parametrize(
    ("settings", "axes", "why"),
    [
        (["sweep.seeds=0"], [SIZES], r"--set: sweep\.seeds: 0: expected 1 to 10000 seeds"),
        (["sweep.seeds=[]"], [SIZES], r"expected at least one seed"),
        (["sweep.seeds=[1, 1]"], [SIZES], "a seed given twice"),
        ([], [], r"quickstart\.yaml: no axes; add a section sweep, or e\.g\. --axis"),
        (["engine.block_size=8"], ["engine.block_size=16"], r"engine\.block_size is an axis"),
        (["sweep.axis=3"], [SIZES], r"sweep\.axis: unknown key; did you mean 'axes'"),
        (["sweep.axes={engine.blocksize: 3}"], [], r"did you mean 'engine\.block_size'"),
        (["sweep.sampling=latin_hypercube"], [SIZES], "needs points"),
        (["sweep.points=5"], [SIZES], "points belongs to sampling latin_hypercube"),
        ([], ["engine.gpu_memory_utilization=0.5..0.9"], "has to say how many values"),
        ([], ["engine.max_num_seqs=1..1000000000"], "are 1,000,000,000 values, more than 100,000"),
        ([], ["engine.block_size=0,-1"], r"^--axis engine\.block_size: 0: expected"),
        ([], ["engine=1"], "^--axis engine: 1: expected a section with keys"),
        (["slo.ttft_ms=-1"], [SIZES], r"^--set: slo\.ttft_ms: -1"),
        ([], ["engine.max_num_seqs=1..9999", "engine.block_size=1..4096"], "more than 1,000,000"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(
    settings: list[str], axes: list[str], why: str
) -> None:
    with pytest.raises(InputError, match=why) as caught:
        study(*axes, settings=settings)
    assert "\n" not in str(caught.value)


def test_a_latin_hypercube_has_one_point_in_each_part_of_each_axis() -> None:
    shares = np.array(latin_hypercube(np.random.default_rng(3), 17, 4))
    assert shares.shape == (17, 4)
    for column in shares.T:
        assert sorted((column * 17).astype(int).tolist()) == list(range(17))


def test_a_drawn_sweep_has_its_points_and_the_same_ones_again() -> None:
    settings = ["sweep.sampling=latin_hypercube", "sweep.points=12", "sweep.seeds=2"]
    axes = ["workload.arrivals.request_rate=1.0..40.0", "engine.scheduler=paged,chunked"]
    one, same = study(*axes, settings=settings), study(*axes, settings=settings)
    other = study(*axes, settings=[*settings, "sweep.sampling_seed=9"])
    assert len(one.points) == 24
    assert [point.values for point in one.points] == [point.values for point in same.points]
    assert [point.values for point in one.points] != [point.values for point in other.points]
    schedulers = [point.values["engine.scheduler"] for point in one.points[::2]]
    assert schedulers.count("paged") == 6


# -- hashes -----------------------------------------------------------------------------------


def key(*settings: str, name: str = "quickstart") -> str:
    scenario, origin = load_scenario(name, settings)
    return point_key.point_key(scenario, beside=origin.parent)


def test_a_key_depends_on_every_setting_and_on_no_name() -> None:
    keys = [key(), key("engine.max_num_seqs=255"), key("workload.seed=2"), key("slo.ttft_ms=201"),
            key("hardware.gpu=h100-sxm")]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key("name=other", "description=else") == key()
    assert key("engine.max_num_seqs=256") == key(), "a default that is written out is the default"


def test_a_key_depends_on_what_a_trace_holds_not_on_when_it_was_written(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    setting = f"workload.trace={trace}"
    trace.write_text(rows)
    first = key(setting, name="azure-conversation")
    trace.write_text(rows.replace("374", "375"))
    second = key(setting, name="azure-conversation")
    trace.write_text(rows)
    assert second != first
    assert key(setting, name="azure-conversation") == first


def test_a_key_depends_on_the_code_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(point_key, "forecast_version", lambda: "another")
    assert key() != before


def test_a_key_depends_on_what_stands_behind_a_gpus_and_a_models_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = key()
    cheaper = tmp_path / "gpus.yaml"
    text = library.GPUS_FILE.read_text()
    cheaper.write_text(text.replace("price_usd_per_hour: 3.80", "price_usd_per_hour: 3.81"))
    monkeypatch.setattr(gpu_library, "GPUS_FILE", cheaper)
    assert key() != before
