"""Nonsense in a sizing is refused in one line that names the place and the remedy."""

from pathlib import Path

import pytest

from scenarios.errors import InputError
from scenarios.sizing.load import load_sizing
from scenarios.sizing.sizing import size


def refusal(*settings: str, name: str | None = "budget-1e22") -> str:
    with pytest.raises(InputError) as error:
        sizing, origin = load_sizing(name, ["serving=null", *settings])
        size(sizing, origin=origin)
    line = str(error.value)
    assert "\n" not in line
    return line


REFUSED = {
    "budget.flops=1e10": "1e+10 FLOPs are too few for any model: the law chinchilla would spend",
    "budget.flops=0": "budget.flops: 0: expected greater than 0",
    "budget.flops=-1e22": "budget.flops: -1e+22: expected greater than 0",
    "budget.flops=.inf": "budget.flops: inf",
    "budget.flops=lots": "budget.flops: 'lots'",
    "budget.usd=-5": "budget.usd: -5",
    "budget.usd=0.0001": "FLOPs are too few for any model",
    "budget=null": "nothing to size: give a budget (--set budget.flops=1e22",
    "budget={}": "budget: give either flops or usd",
    "law=chinchila": "law.form: 'chinchila' is not known; did you mean 'chinchilla'?",
    "law=rosenfeld": "rosenfeld is fitted anew for every data set",
    "law={form: besiroglu, runs: x.csv}": "besiroglu has coefficients of its own",
    "law={runs: nowhere.csv}": "law.runs: nowhere.csv: no such file",
    "law={coefficients: {a: 1}}": "coefficients of form chinchilla are a, alpha, b, beta, irred",
    "law={coefficients: {a: -1}}": "law.coefficients.a: -1",
    "law={runs: x.csv, bootstrap: 0}": "law.bootstrap: 0",
    "law={runs: x.csv, initial_loss: 11}": "initial_loss, ln(vocabulary), belongs to form rosenf",
    "training.gpu=h1000": "training.gpu: unknown GPU 'h1000'; did you mean 'h100-",
    "training.mfu=1.4": "training.mfu: 1.4: expected less than or equal to 1",
    "training.mfu=0": "training.mfu: 0",
    "training.gpus=0": "training.gpus: 0",
    "training.zero_stage=4": "training.zero_stage: 4",
    "training.checkpointing=layers": "'layers' is not known; did you mean 'layer'?",
    "trainig.gpus=8": "trainig: unknown key; did you mean 'training'?",
    "training.gpuz=8": "training.gpuz: unknown key; did you mean 'gpu'? allowed: gpu, gpus, mfu",
    "shape.vocab_size=0": "shape.vocab_size: 0",
    "shape={num_experts: 4, experts_per_token: 8}": "experts_per_token 8 exceeds num_experts 4",
    "shape={experts_per_token: 8}": "experts_per_token has no meaning without num_experts",
    "over_training.sizes=[]": "over_training.sizes",
    "over_training.sizes=[1.5]": "over_training.sizes[0]: 1.5",
    "model=llama-3.1-8b": "shape has no meaning beside the model llama-3.1-8b",
    "tokens=1e12": "tokens belong to a model",
    "serving={gpus: [h900]}": "serving.gpus: unknown GPU 'h900'",
    "serving={tensor_parallel: [0]}": "serving.tensor_parallel[0]: 0: expected greater",
    "training.gradient_dtype=int8": "'int8' is not known; allowed: bfloat16, float16, float32",
    "serving={lifetime_tokens: -1}": "serving.lifetime_tokens: -1",
    "serving={years: 2}": "serving: years need lifetime_tokens or request_rate: what is served",
    "serving.request_rate=5": "serving: request_rate needs years: for how long so many are served",
    "serving={request_rate: 5, lifetime_tokens: 1e12, years: 1}": "keep one of them",
    "serving={lifetime_tokens: 1e12, years: 0}": "serving.years: 0",
    "serving={slo: {tpot_ms: -3}}": "serving.slo.tpot_ms: -3",
    "serving={slo: {tpot: 30}}": "serving.slo.tpot: unknown key; did you mean 'tpot_ms'",
    "serving={latency: {source: aiconfigurator}}": "serving.latency: source aiconfigurator",
    "serving={lengths: {prompt: {distribution: fixed}}}": "serving.lengths",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_nonsense_is_refused_where_it_stands(setting: str) -> None:
    shape = ["shape.kv_heads=4"] if setting.startswith("model") else []
    assert REFUSED[setting] in refusal(setting, *shape)


def test_an_override_is_blamed_and_a_file_is_named(tmp_path: Path) -> None:
    assert refusal("training.mfu=2").startswith("--set: training.mfu")
    file = tmp_path / "mine.yaml"
    file.write_text("budget: {flops: 1e22}\ntraining: {mfu: 2.0}\n")
    with pytest.raises(InputError, match=r"mine\.yaml: training\.mfu: 2\.0"):
        load_sizing(str(file))


def test_a_law_given_by_its_name_has_room_for_keys() -> None:
    assert "law.runs: none.csv: no such file" in refusal("law.form=chinchilla", "law.runs=none.csv")
    assert "law.runs: none.csv: no such file" in refusal("law=kaplan", "law.runs=none.csv")
    loaded, _ = load_sizing("budget-1e22", ["law.confidence=0.9", "law=kaplan"])
    assert (loaded.law.form, loaded.law.confidence) == ("kaplan", 0.9)


def test_a_sizing_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InputError, match="did you mean 'budget-1e22'"):
        load_sizing("budget-1e23")


def test_a_folder_or_a_list_is_no_sizing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, expected a sizing file"):
        load_sizing(str(tmp_path))
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n")
    with pytest.raises(InputError, match="expected a mapping of keys"):
        load_sizing(str(file))


def test_a_model_that_is_not_known_is_refused_with_the_nearest() -> None:
    assert "model: unknown model 'llama-3.1-9b'" in refusal("model=llama-3.1-9b", name=None)


def test_a_budget_too_small_names_the_smallest_model_and_what_would_do() -> None:
    line = refusal("budget.flops=1e10")
    assert "the smallest model, 1 layer of width 128 with a vocabulary of 128,256, has 3.3e" in line
    enough = float(line.split("; ")[1].split(" FLOPs would do")[0])
    sizing, _ = load_sizing("budget-1e22", ["serving=null", f"budget.flops={1.1 * enough}"])
    assert size(sizing).rows[0]["layers"] == 1
    assert "too few for any model" in refusal(f"budget.flops={0.9 * enough}")
