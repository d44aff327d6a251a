"""What ``accelplug bench`` makes of its rounds: agreement, the best of a grid, the exit status, and the table and picture of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import accelplug
from accelplug import OptionError
from accelplug.cli.bench import plot, results, table
from accelplug.cli.bench.figures import COPY_BINS, copy_bin
from accelplug.cli.bench.measure import Taken, joined, until
from accelplug.cli.bench.progress import until_interrupted
from accelplug.cli.bench.tasks import Prompt
from accelplug.cli.bench.ways import Way

TIE = 1e-4
PLAIN = [[[5, 6, 7, 8]], [[1, 2, 3, 4]]]
MARGINS = [[1.0, 5e-5, 1.0, 1.0], None]
PROMPTS = [Prompt("a", [5, 6, 7, 8, 9]), Prompt("a", [1, 2], script=[1, 2, 3, 4])]

BINNED = [Prompt("a", [5, 6, 7, 8, 9]), Prompt("b", [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4])]


def taken(outputs=PLAIN, seconds=(2.0, 4.0, 6.0), forwards=8, drafted=0, accepted=0):
    cpu = [[0.9 * took, 0.1 * took] for took in seconds]
    return Taken(list(seconds), outputs, forwards, forwards, drafted, accepted, cpu)


@pytest.mark.parametrize(
    ("outputs", "counts"),
    [
        (PLAIN, (2, 0, 0)),
        ([[[5, 9, 7, 8]], [[1, 2, 3, 4]]], (1, 1, 0)),  # where plain's margin is below the tie
        ([[[5, 6, 9, 8]], [[1, 2, 3, 4]]], (1, 0, 1)),
        ([[[5, 6, 7, 8]], [[1, 2, 9, 4]]], (1, 0, 1)),  # a script has no ties
        ([[[5, 6, 7, 8], [5, 6, 7]], [[1, 2, 3, 4]]], (1, 0, 1)),  # in one round only
        ([[[5, 9, 7, 8], [5, 6, 7, 9]], [[1, 2, 3, 4]]], (1, 0, 1)),  # one excuse does not cover the other
        ([[[5, 6, 7, 8, 9]], [[1, 2, 3, 4]]], (1, 0, 1)),
    ],
)
def test_outputs_are_counted_as_identical_near_ties_or_different(outputs, counts):
    found = results.agreement(taken(), taken(outputs), MARGINS, TIE)
    assert tuple(found[key] for key in ("identical", "near_tie", "different")) == counts


@pytest.fixture
def document():
    """A document of one task with everything in it; `change` replaces the accelerated outputs."""

    def make(outputs=PLAIN, **more):
        ways = [Way("plain", "plain"), Way("lookup[x]", "accelplug"), Way("transformers 4/2", "transformers"), Way("transformers 8/2", "transformers")]
        measured = [
            taken(),
            taken(outputs, (1.0, 2.0, 3.0), 2, 12, 6),
            taken(seconds=(1.0, 1.0, 9.0), forwards=4),
            taken(seconds=(1.0, 1.0, 1.0), forwards=4),
        ]
        rows = [{"batch_size": 1, **row} for row in results.task_rows(ways, measured, PROMPTS, MARGINS, TIE)]
        pairs = results.pair_rows(rows, [("lookup[x]", "plain"), ("lookup[x]", "absent")])
        parts = [[taken([output], seconds=(own.seconds[0],), drafted=4, accepted=number) for own, output in zip(measured, (PLAIN[number],) * 4, strict=True)]
                 for number in range(2)]  # fmt: skip
        alone = [(prompt, part, margin) for prompt, part, margin in zip(BINNED, parts, MARGINS, strict=True)]
        return {
            "rows": rows, "pairs": pairs, "by_copy_ratio": results.bin_rows(ways, alone, TIE), "prompts": results.prompt_rows(PROMPTS, taken(), MARGINS, TIE),
            "left_out": {"drafter other": "needs sources"}, "near_tie_below": TIE, "interrupted": False,
            "allow_lossy": False, "versions": {"accelplug": "1"}, "model": "m", "dtype": "float32", "machine": "here", "method": "medians", **more,
        }  # fmt: skip

    return make


def test_speed_is_tokens_per_forward_over_time_per_forward(document):
    plain, ours, *_ = document()["rows"]
    assert (plain["tokens_per_forward"], ours["tokens_per_forward"]) == (1.0, 4.0)
    assert ours["ms_per_forward"] == 1000.0
    assert ours["tokens_per_s"] == pytest.approx(1000 * ours["tokens_per_forward"] / ours["ms_per_forward"])
    assert ours["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert (plain["acceptance"], ours["acceptance"]) == (None, 0.5)


def test_cpu_time_is_compared_over_all_and_where_it_is_worst():
    plain, own = taken(), taken()
    plain.cpu, own.cpu = [[4.0, 1.0], [8.0, 1.0], [4.0, 1.0]], [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    found = results.cpu_ratios(plain, own)
    assert (found["cpu_ratio"]["median"], found["worst_cpu_ratio"]) == (1.25, 0.5)
    own.cpu = []
    assert results.cpu_ratios(plain, own) == {"cpu_ratio": None, "worst_cpu_ratio": None}


def test_two_drafters_are_compared_task_by_task(document):
    (pair,) = document()["pairs"]
    assert (pair["technique"], pair["over"], pair["ratio"]["median"], pair["tokens_per_forward"]) == ("lookup[x]", "plain", 2.0, 4.0)


def test_only_the_best_of_a_grid_is_shown(document):
    found = document()
    assert [row["technique"] for row in found["rows"] if row["best_of_own"]] == ["transformers 8/2"]
    assert [row["technique"] for row in table.shown(found["rows"])] == ["plain", "lookup[x]", "transformers 8/2"]


def test_prompts_are_described_with_copy_ratio_and_near_ties(document):
    first, second = document()["prompts"]
    assert (first["prompt_tokens"], first["new_tokens"], first["copy_ratio"], first["near_ties"]) == (5, 4, 0.25, 1)
    assert (second["scripted"], second["near_ties"]) == (True, None)


def test_prompts_are_put_into_bins_by_copy_ratio_whatever_their_task(document):
    found = document()["by_copy_ratio"]
    assert {row["copied"]: row["copy_ratio"] for row in found} == {(0.0, 0.5): 0.25, (0.99, 1.0): 1.0}
    assert [row["technique"] for row in table.shown(found)] == ["plain", "lookup[x]", "transformers 4/2"] * 2
    assert all((row["task"], row["batch_size"], row["prompts"]) == (None, 1, 1) for row in found)
    assert [row["accepted"] for row in found if row["technique"] == "lookup[x]"] == [0, 1]


def test_scripted_prompts_are_in_no_bin():
    part = taken(PLAIN[1:])
    assert results.bin_rows([Way("plain", "plain")], [(PROMPTS[1], [part], None)], TIE) == []


@pytest.mark.parametrize(("ratio", "bounds"), [(0.0, (0.0, 0.5)), (0.5, (0.5, 0.8)), (0.94, (0.8, 0.95)), (0.99, (0.99, 1.0)), (1.0, (0.99, 1.0))])
def test_every_copy_ratio_is_in_one_bin(ratio, bounds):
    assert copy_bin(ratio) == bounds
    assert bounds[0] in COPY_BINS


def test_parts_are_joined_round_by_round():
    one, other = taken(PLAIN[:1], forwards=3, drafted=5, accepted=1), taken(PLAIN[1:], seconds=(1.0, 1.0, 1.0), forwards=4, drafted=6, accepted=2)
    whole = joined([one, other])
    assert (whole.seconds, whole.outputs, whole.forwards, whole.drafted, whole.accepted) == ([3.0, 5.0, 7.0], PLAIN, 7, 11, 3)
    assert [sum(batches) for batches in whole.cpu] == pytest.approx([3.0, 5.0, 7.0])


def test_the_status_is_bad_where_a_lossless_technique_differs(document):
    wrong = [[[5, 6, 9, 8]], [[1, 2, 3, 4]]]
    assert results.status(document()) == 0
    assert results.status(document(wrong)) == 1
    assert results.status(document(wrong, allow_lossy=True)) == 0


def test_an_interrupted_benchmark_says_so_by_its_status_and_keeps_what_was_finished(document):
    assert results.status(document(interrupted=True)) == 130
    assert results.status(document([[[5, 6, 9, 8]], [[1, 2, 3, 4]]], interrupted=True)) == 1

    def parts(finished):
        yield from range(finished)
        raise KeyboardInterrupt

    assert until_interrupted(parts(2)) == ([0, 1], True)
    assert until_interrupted(range(2)) == ([0, 1], False)
    with pytest.raises(KeyboardInterrupt):
        until_interrupted(parts(0))


def shown(found, width=160):
    console = Console(file=io.StringIO(), width=width)
    table.show(found, console)
    return console.file.getvalue()


def test_people_see_every_figure_that_counts(document):
    text = shown(document())
    assert "a, batch 1: lookup[x] over plain: 2.00 (2.00-2.00), tokens/forward 4.00" in text
    figures = ("2.00 (2.00-2.00)", "2.00, 2.00", "50% of 12", "identical")
    for part in ("lookup[x]", *figures, "left out: drafter other: needs sources", "1 near-ties (margin under 0.0001)"):
        assert part in text
    first, bins = text.split("prompts ┃", 1)
    assert "transformers 4/2" not in first
    for part in ("0% to 50%", "99% to 100%", "transformers 4/2"):
        assert part in bins
    assert "1 of 2 DIFFERENT" in shown(document([[[5, 6, 9, 8]], [[1, 2, 3, 4]]]))
    assert "identical, 1 up to a near-tie" in shown(document([[[5, 9, 7, 8]], [[1, 2, 3, 4]]]))


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_too_narrow_for_the_table_gets_all_of_it_as_a_list(document, width):
    found = document()
    text = shown(found, width)
    assert "┃" not in text
    for row in [row for row in found["rows"] if row["family"] == "accelplug"]:
        assert all(part in text for part in (row["task"], row["technique"], *table.figures(row)))
    assert max(len(line) for line in text.partition("left out")[0].splitlines() if " over " not in line) <= width


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_a_picture_is_drawn(document, tmp_path, name, begins):
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    plot.check(path)
    assert not path.exists(), "looking whether it can be written leaves nothing behind"
    plot.draw(document(), path)
    assert path.read_bytes().startswith(begins)


@pytest.mark.parametrize(("name", "reason"), [("a.txt", "end the name in .png"), ("nowhere/a.png", "cannot write")])
def test_a_picture_that_cannot_be_drawn_is_refused_beforehand(tmp_path, name, reason):
    pytest.importorskip("matplotlib")
    with pytest.raises(OptionError, match=reason):
        plot.check(tmp_path / name)


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'accelplug\[plot\]'"):
        plot.check(tmp_path / "a.png")


@pytest.mark.parametrize(("tokens", "kept"), [([1, 0, 3], [1, 0]), ([1, 2], [1, 2]), ([], []), ([0, 0], [0])])
def test_an_output_ends_with_its_first_eos(tokens, kept):
    assert until({0, 9}, tokens) == kept


def test_the_commit_is_that_of_a_checkout_and_of_nothing_else(tmp_path):
    assert results.commit(tmp_path) is None
    found = results.commit(Path(accelplug.__file__).parent)
    assert found is None or len(found) >= 7


def test_circumstances_say_what_is_needed_to_repeat_it():
    found = results.circumstances({"other": "2.0"})
    assert found["versions"]["other"] == "2.0"
    assert found["versions"]["accelplug"] == accelplug.__version__
    assert found["argv"]
