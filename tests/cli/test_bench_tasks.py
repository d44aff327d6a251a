"""Which prompts ``accelplug bench`` runs, and what is wrong with a file of them."""

from __future__ import annotations

import json

import pytest

from accelplug import OptionError
from accelplug.cli.bench.tasks import Text, built_in, chosen, encode, encoded, misspelt, ordinary_tokens, read_prompts, scripted


@pytest.fixture
def written(tmp_path):
    """Write lines into a file of prompts; anything but text becomes JSON."""

    def write(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        return path

    return write


class Words:
    """A tokenizer: one token per word, its length; a template that shouts."""

    all_special_ids = (0, 3)
    chat_template = None
    pad_token_id = None

    def __len__(self):
        return 12

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return f"user: {messages[0]['content']} assistant:"


def test_prompts_and_spec_bench_lines_are_read(written):
    path = written({"prompt": "one"}, "", {"prompt": "two", "task": "b"}, {"question_id": 81, "category": "writing", "turns": ["three", "then"]})
    assert read_prompts(path) == [Text("prompts", "one"), Text("b", "two"), Text("writing", "three", is_question=True)]


@pytest.mark.parametrize(
    "line", ["{", "nonsense", "[1, 2]", "3", {"text": "x"}, {"prompt": ""}, {"prompt": 3}, {"turns": []}, {"turns": "x"}, {"turns": [1]}]
)
def test_a_bad_line_is_named_by_its_number(written, line):
    path = written({"prompt": "fine"}, "", line)
    with pytest.raises(OptionError, match=r"prompts.jsonl, line 3: "):
        read_prompts(path)


def test_a_line_ends_at_its_newline_alone(written):
    """Python's splitlines() ends one at U+2028 and at form feeds too, which JSON may hold as they are."""
    (text,) = read_prompts(written(json.dumps({"prompt": "one\u2028two\x85"}, ensure_ascii=False)))
    assert text.text == "one\u2028two\x85"


def test_a_deeply_nested_line_is_refused_like_any_other(written):
    with pytest.raises(OptionError, match="line 1: "):
        read_prompts(written("[" * 200_000))


def test_a_mark_that_an_editor_put_first_is_no_part_of_the_prompts(tmp_path):
    (tmp_path / "marked.jsonl").write_text('{"prompt": "one"}\r\n', encoding="utf-8-sig")
    assert read_prompts(tmp_path / "marked.jsonl") == [Text("prompts", "one")]


@pytest.mark.parametrize("line", ['{"prompt": "a\\ud800"}', '{"turns": ["\\udfff"]}'])
def test_a_prompt_that_no_tokenizer_takes_is_refused(written, line):
    with pytest.raises(OptionError, match="line 1: its prompt has half of a pair of surrogates"):
        read_prompts(written(line))


def test_a_file_without_prompts_or_that_is_not_there_is_refused(written, tmp_path):
    with pytest.raises(OptionError, match="holds no prompts"):
        read_prompts(written("", "  "))
    with pytest.raises(OptionError, match=r"cannot read the prompts in .*nowhere.jsonl \(FileNotFoundError\)"):
        read_prompts(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="UnicodeDecodeError"):
        read_prompts(tmp_path / "binary")


def test_texts_to_correct_are_sorted_by_how_much_is_wrong_with_them():
    found = misspelt(
        [{"noisy": text, "clean": "", "rate": rate, "edit_rate": 0.07} for text, rate in (("a", 0.15), ("b", 0.0), ("c", 0.15))]
    )
    assert found == [Text("correct 0 %", "b"), Text("correct 15 %", "a"), Text("correct 15 %", "c")]


def test_an_edit_belongs_to_the_nearest_rate_and_the_nearest_come_first():
    rates = {"a": 0.0, "b": 0.3, "c": 0.04, "d": 0.26, "e": 0.05, "f": 0.14, "g": 0.02}
    found = built_in([{"prompt": name, "edit_rate": rate} for name, rate in rates.items()])
    by_task = {task: [text.text for text in found if text.task == task] for task in dict.fromkeys(text.task for text in found)}
    assert [by_task[f"edits {rate} %"] for rate in (0, 5, 15, 30)] == [["a", "g"], ["e", "c"], ["f"], ["b", "d"]]
    assert len(by_task["free code"]) >= 8
    assert len(by_task["json"]) >= 8


def test_only_the_tasks_asked_for_are_kept():
    texts = [Text("a", "1"), Text("b", "2")]
    assert chosen(texts, None) == texts
    assert chosen(texts, ["b", "regimes"]) == texts[1:]
    with pytest.raises(OptionError, match="no task 'c'; there are a, b, adversarial, regimes"):
        chosen(texts, ["c"])


def test_a_question_goes_through_the_template_and_a_text_does_not():
    tokenizer = Words()
    assert encode(Text("a", "one three", is_question=True), tokenizer) == [3, 5]
    tokenizer.chat_template = "there is one"
    assert encode(Text("a", "one three", is_question=True), tokenizer) == [5, 3, 5, 10]
    assert encode(Text("a", "one three"), tokenizer) == [3, 5]


def test_each_task_gets_its_first_prompts_that_fit():
    texts = [Text("a", "w " * length) for length in (9, 2, 0, 3, 4)] + [Text("b", "w " * 9)]
    prompts, left_out = encoded(texts, Words(), room=5, limit=2)
    assert [len(prompt.tokens) for prompt in prompts] == [2, 3]
    assert list(left_out) == ["b"]
    assert "between 1 and 5 tokens" in left_out["b"]


def test_scripts_use_ordinary_tokens_only():
    ordinary = ordinary_tokens(Words(), 10, [5])
    assert ordinary == [1, 2, 4, 6, 7, 8, 9]
    prompts, left_out = scripted(["adversarial", "regimes"], ordinary, (), 20, 200, 3)
    assert [(prompt.task, len(prompt.script)) for prompt in prompts] == [("adversarial", 20)] * 3
    assert {token for prompt in prompts for token in (*prompt.tokens, *prompt.script)} <= set(ordinary)
    assert "too few" in left_out["regimes"]
