"""The grammar of axes: what is written is what varies, and nothing else is taken for it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.errors import InputError
from scenarios.sweep.axes import axes_from_mapping, axis_from_text, level_text, merged

SIZE = "engine.max_num_seqs"
SHARE = "engine.gpu_memory_utilization"


def values(text: str, path: str = SIZE) -> list[Any]:
    return [level[0] for level in axis_from_text(f"{path}={text}").levels]


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "1,2,4": [1, 2, 4],
        "1..5": [1, 2, 3, 4, 5],
        "1..64:+8": [1, 9, 17, 25, 33, 41, 49, 57],
        "1..256:x2": [1, 2, 4, 8, 16, 32, 64, 128, 256],
        "1..300:x2,300": [1, 2, 4, 8, 16, 32, 64, 128, 256, 300],
        "8..64:lin3": [8, 36, 64],
        "1..1000:log4": [1, 10, 100, 1000],
        "3": [3],
        " 1 , 2 ": [1, 2],
        "-4..4:+4": [-4, 0, 4],
    }.items(),
)
def test_whole_numbers_stay_whole(text: str, expected: list[int]) -> None:
    found = values(text)
    assert found == expected
    assert all(type(value) is int for value in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "0.1..0.5:+0.1": [0.1, 0.2, 0.3, 0.4, 0.5],
        "0.5..0.9:lin5": [0.5, 0.6, 0.7, 0.8, 0.9],
        "1e-3..1:x10": [0.001, 0.01, 0.1, 1.0],
        "0.5,1e-1": [0.5, 0.1],
        "1..2:+0.5": [1.0, 1.5, 2.0],
    }.items(),
)
def test_decimal_steps_are_the_decimals_one_writes(text: str, expected: list[float]) -> None:
    assert values(text, SHARE) == expected


def test_an_axis_reaches_into_a_list() -> None:
    path = "cluster.groups[1].replicas"
    assert values("1,2", path) == [1, 2]
    axis = axis_from_text(f"{path}=1,2")
    with pytest.raises(InputError, match="are on two axes at once"):
        merged([], [axis, axis_from_text("cluster.groups=[[]]")])


def test_values_are_yaml() -> None:
    assert values("true,false", "engine.enable_prefix_caching") == [True, False]
    assert values("null,100", "engine.num_gpu_blocks_override") == [None, 100]
    assert values("paged,'chunked'", "engine.scheduler") == ["paged", "chunked"]
    fixed = "{distribution: fixed, tokens: 7}"
    assert values(f"{fixed},[1, 2]", "workload.lengths.prompt") == [
        {"distribution": "fixed", "tokens": 7},
        [1, 2],
    ]


def test_linked_paths_move_together() -> None:
    axis = axis_from_text("hardware.gpu+hardware.tensor_parallel=h100-sxm:1,a100-80gb:2")
    assert axis.paths == ("hardware.gpu", "hardware.tensor_parallel")
    assert axis.levels == (("h100-sxm", 1), ("a100-80gb", 2))


def test_yaml_and_the_command_line_say_the_same() -> None:
    written = axes_from_mapping(
        {
            SIZE: "8..32:x2",
            "engine.block_size": [8, "16..64:x2"],
            "hardware.gpu + hardware.tensor_parallel": [["l40s", 1], "h100-sxm:2"],
            SHARE: 0.5,
        },
        source="own",
    )
    typed = [
        axis_from_text(text)
        for text in (
            f"{SIZE}=8,16,32",
            "engine.block_size=8,16,32,64",
            "hardware.gpu+hardware.tensor_parallel=l40s:1,h100-sxm:2",
            f"{SHARE}=0.5",
        )
    ]
    assert written == typed


@given(st.integers(1, 500), st.integers(1, 50), st.integers(1, 40))
def test_a_stepped_range_is_what_python_counts(low: int, step: int, steps: int) -> None:
    high = low + step * steps
    assert values(f"{low}..{high}:+{step}") == list(range(low, high + 1, step))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True))
def test_what_is_printed_reads_back(numbers: list[int]) -> None:
    text = ",".join(level_text((number,)) for number in numbers)
    assert values(text) == numbers


REFUSED = {
    "max_num_seqs=1": r"no such path 'max_num_seqs'; did you mean 'engine\.max_num_seqs'\?",
    "engine.max_num_seq=1": r"did you mean 'engine\.max_num_seqs'\? allowed under engine: ",
    "enigne.block_size=3": r"did you mean 'engine\.block_size'\? allowed at the top: model, ",
    "engine.block_size.x=3": r"engine\.block_size is a value, there is no engine\.block_size\.x",
    "sweep.seeds=1,2": "cannot be an axis",
    "workload.seed=1,2": r"runs are repeated with sweep\.seeds, e\.g\. --set sweep\.seeds=5",
    "name=a,b": "name cannot be an axis: it changes no answer",
    "cluster.groups[0].replica=1": r"no such path 'cluster.groups\[0\]\.replica'; did you mean",
    "engine[0]=1": r"no such path 'engine\[0\]': engine is no list",
    "engine.[0]=1": r"no such path 'engine\.\[0\]': '\[0\]' is no key",
    "cluster.groups[0].replicas+cluster.groups[0].replicas=1:1": "linked to itself",
    f"{SIZE}=1:2": r"1:2 is for linked paths",
    f"{SIZE}=": r"expected PATH=VALUES",
    SIZE: r"expected PATH=VALUES",
    f"{SIZE}=1,,2": "a value is missing between two commas",
    f"{SIZE}=8..1": "the range 8..1 has to go upwards",
    f"{SIZE}=1..8:3": r"1\.\.8:3 is no range; expected :\+STEP, :xFACTOR, :linCOUNT or :logCOUNT",
    f"{SIZE}=1..8:lin1": "a count of at least 2",
    f"{SIZE}=1..2:log9": "fewer than 9 whole numbers",
    f"{SIZE}=1..x": r"1\.\.x is no range",
    f"{SIZE}=0..64:x2": "a factor above 1 and a range above 0",
    f"{SIZE}=1..64:x1": "a factor above 1",
    f"{SIZE}=0..64:log3": "a logarithmic range has to begin above 0",
    f"{SIZE}=1..64:+0": "a step above 0",
    f"{SIZE}=[1,2": r"a \] is missing",
    f"{SIZE}=4,4": "4 is given twice",
    f"{SIZE}=1..9999999:+1": "more than 100,000",
    f"{SHARE}=0.1..0.9,1": "has to say how many values",
    f"{SIZE}=1..1000000000,5": "are 1,000,000,000 values, more than 100,000; take",
    "engine.block_size+engine.max_num_seqs=1:2,3": "3 has 1 values for 2 linked paths",
    f"{SIZE}+{SIZE}=1:2": "a path is linked to itself",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_axis_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=REFUSED[text]) as caught:
        axis_from_text(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--axis ")


def test_an_axis_of_the_command_line_takes_the_place_of_the_files() -> None:
    own = [axis_from_text(f"{SIZE}=1,2"), axis_from_text("engine.block_size=8,16")]
    result = merged(own, [axis_from_text(f"{SIZE}=4"), axis_from_text("model=qwen3-8b")])
    assert [axis.name for axis in result] == [SIZE, "engine.block_size", "model"]
    assert result[0].levels == ((4,),)


def test_a_path_is_on_one_axis_only() -> None:
    whole = axis_from_text("workload.lengths.prompt={distribution: fixed, tokens: 7}")
    inside = axis_from_text("workload.lengths.prompt.mean=64,128")
    with pytest.raises(InputError, match=r"^study\.yaml: .* are on two axes at once"):
        merged([], [whole, inside], source="study.yaml")


def test_a_drawn_value_lies_in_its_range_and_every_whole_number_has_its_turn() -> None:
    axis = axis_from_text(f"{SIZE}=1..4")
    assert [axis.drawn(share)[0] for share in (0, 0.24, 0.26, 0.51, 0.76, 0.999)] == [
        *(1, 1, 2, 3, 4, 4),
    ]
    logarithmic = axis_from_text(f"{SIZE}=1..10000:log")
    assert [logarithmic.drawn(share)[0] for share in (0, 0.5, 1 - 1e-12)] == [1, 100, 10000]
    real = axis_from_text(f"{SHARE}=0.5..0.9")
    assert real.drawn(0.5) == (0.7,)
    listed = axis_from_text("engine.scheduler=paged,chunked")
    assert [listed.drawn(share)[0] for share in (0, 0.49, 0.5, 0.99)] == [
        *("paged", "paged", "chunked", "chunked"),
    ]
