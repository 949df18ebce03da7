"""What the engine generates: that of plain loops and of transformers, whatever else runs beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from engine import Finished, Progress, RetrievalParams, Token
from tests.engine.running import Running, running
from tests.models import LANDMARK, Bench, random_tokens

BLOCKS: dict[str, Any] = {"block_size": 8, "recent_blocks": 2, "blocks_per_head": 3}
EXACT = RetrievalParams(exact=True)


@pytest.fixture
def tiny(tiny_folder: Path) -> Iterator[Running]:
    """An engine of the training-free Llama that shares nothing between requests."""
    with running(tiny_folder, **BLOCKS, prefix_cache=False) as run:
        yield run


@pytest.fixture
def trained(landmark_folder: Path) -> Iterator[Running]:
    """An engine of the Llama with trained landmarks that shares nothing between requests."""
    with running(landmark_folder, prefix_cache=False) as run:
        yield run


def plain_loop(bench: Bench, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens by asking for one row of logits at a time."""
    session, answer, new = bench.session(), list[int](), prompt
    for _ in range(count):
        logits = bench.logits(session, new, [len(new)], fetch=3)[-1]
        if bench.landmark is not None:
            logits[bench.landmark] = -torch.inf
        new = [int(logits.argmax())]
        answer += new
    return answer


def eager(folder: Path) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval()
    assert isinstance(model, LlamaForCausalLM)
    model.generation_config.eos_token_id = None
    return model


# -- oracles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 9, 150])
def test_greedy_generation_is_a_plain_loop_over_logits(
    length: int, tiny: Running, tiny_folder: Path, trained: Running, landmark_folder: Path
) -> None:
    prompt = random_tokens(length)
    expected = plain_loop(Bench(tiny_folder, landmark_dtype="int4", **BLOCKS), prompt, 20)
    assert tiny.ask(prompt, max_tokens=20).tokens() == expected
    expected = plain_loop(Bench(landmark_folder, landmark_dtype="int4"), prompt, 20)
    assert trained.ask(prompt, max_tokens=20).tokens() == expected
    assert LANDMARK not in expected


def test_reading_everything_is_transformers_own_generation(tiny: Running, tiny_folder: Path) -> None:
    prompt = random_tokens(300)
    generated = eager(tiny_folder).generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30)
    expected = generated[0, len(prompt) :].tolist()
    assert len(set(expected)) > 5, "the model repeats itself and tells nothing"
    assert tiny.ask(prompt, max_tokens=30, retrieval=EXACT).tokens() == expected
    assert tiny.ask(prompt, max_tokens=30, retrieval=RetrievalParams(blocks_per_head=60)).tokens() == expected
    assert tiny.ask(prompt, max_tokens=30, retrieval=RetrievalParams(blocks_per_head=0)).tokens() != expected


def test_log_probabilities_are_those_of_transformers(tiny: Running, tiny_folder: Path) -> None:
    prompt = random_tokens(60)
    request = tiny.ask(prompt, max_tokens=5, logprobs=4, retrieval=EXACT, repetition_penalty=1.3)
    with torch.no_grad():
        logits = eager(tiny_folder)(torch.tensor([prompt + request.tokens()])).logits[0, len(prompt) - 1 : -1]
    for token, expected in zip(request.drawn(), logits.log_softmax(-1), strict=True):
        assert token.logprob == pytest.approx(float(expected[token.token]), abs=1e-4)
        assert [t for t, _ in token.top_logprobs] == expected.topk(4).indices.tolist()
        assert [p for _, p in token.top_logprobs] == pytest.approx(expected.topk(4).values.tolist(), abs=1e-4)


# -- beside others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_many_requests_at_once_give_what_each_gives_alone(kind: str, tiny_folder: Path, landmark_folder: Path) -> None:
    """More than fit at once, of all lengths, read in pieces smaller than a block."""
    folder, blocks = (tiny_folder, BLOCKS) if kind == "tiny" else (landmark_folder, {})
    prompts = [random_tokens(length, seed=length) for length in (1, 5, 8, 40, 77, 130, 64, 3)]
    options = [{"temperature": 1.0, "seed": i, "max_tokens": 3 * i} if i % 2 else {"max_tokens": 12} for i in range(8)]
    with running(folder, **blocks, prefix_cache=False, max_running=3, step_tokens=11) as run:
        alone = [run.ask(prompt, **option) for prompt, option in zip(prompts, options, strict=True)]
        run.gate.reports.clear()
        together = [run.submit(prompt, **option) for prompt, option in zip(prompts, options, strict=True)]
        for expected, request in zip(alone, together, strict=True):
            assert request.result().tokens() == expected.tokens()
            assert request.end.usage == expected.end.usage
        mixed = [report for report in run.gate.reports if report.prefill_tokens and report.decode_tokens]
        assert mixed, "nothing was decoded while others were read"


def test_choices_are_single_requests_with_the_following_seeds(trained: Running, tiny: Running) -> None:
    for run in (trained, tiny):
        for length in (5, 14, 50):
            prompt = random_tokens(length)
            options = {"temperature": 1.0, "max_tokens": 12}
            choices = run.ask(prompt, n=3, seed=40, **options)
            for index in range(3):
                assert choices.tokens(index) == run.ask(prompt, seed=40 + index, **options).tokens()
            assert len({tuple(choices.tokens(index)) for index in range(3)}) == 3
            assert {end.usage.completion_tokens for end in choices.ends().values()} == {12}


def test_a_seed_gives_the_same_in_another_engine(landmark_folder: Path) -> None:
    answers = []
    for max_running in (1, 4):
        with running(landmark_folder, max_running=max_running) as run:
            answers.append(run.ask(random_tokens(30), temperature=1.5, seed=3, max_tokens=30).tokens())
    assert answers[0] == answers[1]


# -- events --------------------------------------------------------------------------------------------------


def test_progress_then_tokens_then_one_end(landmark_folder: Path) -> None:
    with running(landmark_folder, step_tokens=20) as run:
        request = run.ask(random_tokens(50), max_tokens=3)
    kinds = [type(event) for event in request.events]
    assert kinds == [Progress] * 4 + [Token] * 3 + [Finished]
    progress = [event for event in request.events if isinstance(event, Progress)]
    assert [(p.processed, p.total, p.cached) for p in progress] == [(done, 50, 0) for done in (0, 20, 40, 50)]
    times = [p.time_ms for p in progress]
    assert times == sorted(times)
    assert request.end.reason == "length"
    assert (request.end.usage.prompt_tokens, request.end.usage.completion_tokens) == (50, 3)
    assert min(vars(request.end.timing).values()) >= 0.0


def test_an_end_token_stops(tiny: Running) -> None:
    """The model's own, bias makes it come at once; unless it is to be ignored."""
    always = {2: 100.0}
    stopped = tiny.ask(random_tokens(20), logit_bias=always, ignore_eos=False)
    assert (stopped.tokens(), stopped.end.reason) == ([2], "stop")
    ignored = tiny.ask(random_tokens(20), logit_bias=always, max_tokens=3)
    assert (ignored.tokens(), ignored.end.reason) == ([2, 2, 2], "length")


def test_further_end_tokens_stop_even_if_the_models_own_is_ignored(tiny: Running) -> None:
    answer = tiny.ask(random_tokens(20)).tokens()
    request = tiny.ask(random_tokens(20), stop_token_ids=(answer[3],))
    assert request.tokens() == answer[: answer.index(answer[3]) + 1]
    assert request.end.reason == "stop"


@pytest.mark.parametrize("n", [1, 3])
def test_no_tokens_wanted_reads_the_prompt_and_ends_every_choice(n: int, tiny: Running) -> None:
    request = tiny.ask(random_tokens(20), max_tokens=0, n=n)
    assert [request.tokens(index) for index in range(n)] == [[]] * n
    assert {end.reason for end in request.ends().values()} == {"length"}


def test_a_landmark_is_never_generated(trained: Running) -> None:
    request = trained.ask(random_tokens(30), temperature=2.0, seed=1, max_tokens=200, logit_bias={LANDMARK: 100.0})
    assert LANDMARK not in request.tokens()


# -- penalties through the engine ----------------------------------------------------------------------------


def test_penalties_see_the_generated_tokens_and_repetition_sees_the_prompt(tiny: Running) -> None:
    banned = tiny.ask(random_tokens(40), logit_bias={9: 50.0}, frequency_penalty=2.0, max_tokens=60).tokens()
    assert 9 in banned
    assert set(banned) != {9}
    prompt = [9] * 40
    repeated = tiny.ask(prompt, logit_bias={9: 5.0}, max_tokens=1).tokens()
    other = tiny.ask(prompt, logit_bias={9: 5.0}, max_tokens=1, repetition_penalty=10.0).tokens()
    assert repeated == [9]
    assert other != [9]


# -- provenance ----------------------------------------------------------------------------------------------


def test_shares_are_the_attention_of_the_answers_tokens(tiny: Running, tiny_folder: Path) -> None:
    """Reading everything, against the attention weights that transformers reports."""
    prompt, size, recent = random_tokens(100), BLOCKS["block_size"], BLOCKS["recent_blocks"]
    request = tiny.ask(prompt, retrieval=RetrievalParams(exact=True, provenance=True, passages=100))
    report = request.end.retrieval
    assert report is not None
    text = prompt + request.tokens()
    with torch.no_grad():
        layers = eager(tiny_folder)(torch.tensor([text]), output_attentions=True).attentions
    weights = torch.stack(layers).sum((0, 1, 2))  # (queries, keys), over layers and heads
    blocks, local, sinks = torch.zeros(len(text) // size + 1), 0.0, 0.0
    for query in range(len(prompt) - 1, len(text) - 1):  # the prompt's last token and the answer's, but for its last
        for key in range(query + 1):
            if query // size - key // size <= recent:
                local += float(weights[query, key])
            elif key < size:
                sinks += float(weights[query, key])
            else:
                blocks[key // size] += weights[query, key]
    whole = local + sinks + float(blocks.sum())
    assert report.local == pytest.approx(local / whole, abs=1e-4)
    assert report.sinks == pytest.approx(sinks / whole, abs=1e-4)
    assert report.fetched == pytest.approx(float(blocks.sum()) / whole, abs=1e-4)
    assert sum(passage.share for passage in report.passages) == pytest.approx(report.fetched, abs=1e-4)
    for passage in report.passages:
        expected = float(blocks[passage.start // size : passage.end // size].sum()) / whole
        assert passage.share == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("passages", [1, 3])
def test_passages_are_the_most_read_first_and_lie_in_the_prompt(passages: int, trained: Running) -> None:
    wanted = RetrievalParams(provenance=True, passages=passages)
    report = trained.ask(random_tokens(300), retrieval=wanted).end.retrieval
    assert report is not None
    assert report.fetched + report.sinks + report.local == pytest.approx(1.0, abs=1e-5)
    assert 1 <= len(report.passages) <= passages
    shares = [passage.share for passage in report.passages]
    assert shares == sorted(shares, reverse=True)
    assert 0.0 < sum(shares) <= report.fetched + 1e-6
    for passage in report.passages:
        assert 7 <= passage.start < passage.end <= 300  # after the sink, whose block has 7 text tokens
        assert passage.start % 7 == passage.end % 7 == 0
    spans = sorted((passage.start, passage.end) for passage in report.passages)
    assert all(first[1] < second[0] for first, second in pairwise(spans))


def test_provenance_is_told_only_if_asked_for_and_changes_nothing(trained: Running) -> None:
    prompt = random_tokens(200)
    told = trained.ask(prompt, retrieval=RetrievalParams(provenance=True))
    silent = trained.ask(prompt)
    assert silent.end.retrieval is None
    assert told.tokens() == silent.tokens()


def test_a_short_prompt_is_all_local(trained: Running) -> None:
    report = trained.ask(random_tokens(5), retrieval=RetrievalParams(provenance=True)).end.retrieval
    assert report is not None
    assert (report.passages, report.fetched, report.sinks, report.local) == ((), 0.0, 0.0, 1.0)


# -- measures ------------------------------------------------------------------------------------------------


def test_steps_report_what_they_computed(landmark_folder: Path) -> None:
    with running(landmark_folder, step_tokens=40) as run:
        run.ask(random_tokens(100), max_tokens=5)
    reports = run.gate.reports
    assert [report.phase for report in reports] == ["prefill"] * 3 + ["decode"] * 4
    assert [report.prefill_tokens for report in reports] == [40, 40, 20, 0, 0, 0, 0]
    assert [report.decode_tokens for report in reports] == [0, 0, 0, 1, 1, 1, 1]
    for report in reports[3:]:
        # 3 layers of 4 KV heads; a token that fills a block brings a landmark with it
        assert report.queries in (12, 24)
        assert report.blocks_selected == 3 * report.queries == report.hits["device"]
        assert 0.0 <= report.retrieval_seconds <= report.seconds
