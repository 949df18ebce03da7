"""The rows of the perplexity tables against loops that compute them the slow way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import training.attention
from bench import perplexity
from bench.knn_lm import KnnScorer, Mixing, find_neighbours, mix
from bench.perplexity import TUNED_ON, rows, segment_losses, spread
from bench.perplexity_table import cell, late_part, markdown, summary
from bench.scoring import LandmarkScorer, PlainScorer, Reading, predicting
from engine.attention import Sharing
from tests.models import LANDMARK, Bench, random_tokens
from training import HELD_OUT
from training.attention import LandmarkSettings, always_read, block_ages

WINDOW, STRIDE = 16, 4
BLOCK, RECENT, FETCH = 8, 2, 3


def text(blocks: int) -> list[int]:
    """So many blocks of tokens and the one after, of which all but the first are scored."""
    return random_tokens(blocks * (BLOCK - 1) + 1)


# -- the plain model -----------------------------------------------------------------------------------------


def brute_force(folder: Path, tokens: list[int], first_read: list[int]) -> Tensor:
    """Losses of tokens 1, 2, … where the model reads from token `first_read[i]` up to token i."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    losses = []
    with torch.no_grad():
        for i, start in enumerate(first_read):
            logits = model(torch.tensor([tokens[start : i + 1]])).logits[0, -1]
            losses.append(-logits.log_softmax(-1)[tokens[i + 1]])
    return torch.stack(losses)


@pytest.mark.parametrize("count", [5, WINDOW + 1, 40, 75])
def test_a_sliding_window_is_computed_as_one_text_after_the_other(tiny_folder: Path, count: int) -> None:
    tokens = random_tokens(count)
    starts = [max(0, -(-(i + 1 - WINDOW) // STRIDE) * STRIDE) for i in range(count - 1)]
    assert all(WINDOW - STRIDE < i + 1 - start <= WINDOW for i, start in enumerate(starts) if start)
    losses = PlainScorer(str(tiny_folder), WINDOW, STRIDE).losses(tokens)
    torch.testing.assert_close(losses, brute_force(tiny_folder, tokens, starts), atol=1e-4, rtol=1e-4)


def test_without_a_window_the_whole_text_is_read(tiny_folder: Path) -> None:
    tokens = random_tokens(40)
    losses = PlainScorer(str(tiny_folder), None, STRIDE).losses(tokens)
    torch.testing.assert_close(losses, brute_force(tiny_folder, tokens, [0] * 39), atol=1e-4, rtol=1e-4)


# -- kNN-LM --------------------------------------------------------------------------------------------------


def naive_knn(states: Tensor, base: Tensor, tokens: list[int], mixing: Mixing, count: int) -> Tensor:
    """The mixture, one state and one pair at a time."""
    losses = []
    for i in range(len(states)):
        start = max(0, -(-(i + 1 - WINDOW) // STRIDE) * STRIDE)
        pairs = [(float((states[i] - states[j]).square().sum()), tokens[j + 1]) for j in range(i) if j + 1 < start]
        pairs = sorted(pairs)[:count]
        if not pairs:
            losses.append(float(base[i]))
            continue
        weights = torch.tensor([-distance / mixing.temperature for distance, _ in pairs]).softmax(0).tolist()
        chance = sum(w for w, (_, token) in zip(weights, pairs, strict=True) if token == tokens[i + 1])
        mixed = (1 - mixing.share) * torch.exp(-base[i]) + mixing.share * chance
        losses.append(float(-mixed.log()))
    return torch.tensor(losses)


@pytest.mark.parametrize("count", [4, 1000])
def test_neighbours_are_mixed_as_one_pair_after_the_other(tiny_folder: Path, count: int) -> None:
    tokens = random_tokens(30) * 3
    plain = PlainScorer(str(tiny_folder), WINDOW, STRIDE)
    states = plain.states(tokens)
    base, mixing = plain.state_losses(states, tokens), Mixing(0.3, 20.0)
    found = find_neighbours(states, tokens, plain.starts(len(states)), WINDOW, count)
    mixed = mix(base, found, mixing)
    torch.testing.assert_close(mixed, naive_knn(states, base, tokens, mixing, count), atol=1e-4, rtol=1e-4)
    assert bool((mixed < base - 0.1).any()), "a repeated text shows in its neighbours"


def test_without_a_share_the_model_is_alone(tiny_folder: Path) -> None:
    tokens, plain = random_tokens(60), PlainScorer(str(tiny_folder), WINDOW, STRIDE)
    losses = KnnScorer(plain, WINDOW, {60: Mixing(0.0, 1.0)}).losses(tokens)
    torch.testing.assert_close(losses, plain.losses(tokens))


# -- landmarks -----------------------------------------------------------------------------------------------


def training_losses(folder: Path, tokens: list[int]) -> Tensor:
    """Losses by the dense attention of training, with whatever choice of blocks it makes."""
    training.attention.register()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=training.attention.NAME, dtype="float32")
    slots = []
    for start in range(0, len(tokens) - 1, BLOCK - 1):
        slots += [*tokens[start : start + BLOCK - 1], LANDMARK]
    ids = torch.tensor([slots[: (len(tokens) - 1) // (BLOCK - 1) * BLOCK]])
    settings = LandmarkSettings(block_size=BLOCK, recent_blocks=RECENT, sink_blocks=1, blocks_per_head=FETCH)
    inputs = {"inv_freq": model.model.rotary_emb.inv_freq, "landmarks": settings}
    with torch.no_grad():
        logits = model(ids, position_ids=torch.zeros_like(ids), use_cache=False, **inputs).logits[0]
    logits = logits[predicting(ids[0].tolist(), LANDMARK)]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")


def scored(folder: Path, reading: Reading, tokens: list[int]) -> Tensor:
    return LandmarkScorer(str(folder), reading, context=64).losses(tokens)


def test_each_head_and_token_chooses_as_in_training(landmark_folder: Path) -> None:
    tokens = text(20)
    losses = scored(landmark_folder, Reading(FETCH), tokens)
    torch.testing.assert_close(losses, training_losses(landmark_folder, tokens), atol=1e-4, rtol=1e-4)


def test_enough_blocks_are_all_blocks(landmark_folder: Path) -> None:
    tokens, bench = random_tokens(150), Bench(landmark_folder)
    logits = bench.logits(bench.session(), tokens[:-1], [149], fetch=None)
    everything = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    for sharing in (Sharing(), Sharing(tokens=True), Sharing(heads=True)):
        losses = scored(landmark_folder, Reading(100, sharing), tokens)
        torch.testing.assert_close(losses, everything, atol=1e-4, rtol=1e-4)


def test_no_blocks_are_the_local_window_and_the_sink(landmark_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(landmark: Tensor, at: Tensor, settings: LandmarkSettings, *, tied: bool) -> Tensor:
        return always_read(block_ages(at, landmark.shape[-1], settings), settings).expand_as(landmark)

    monkeypatch.setattr(training.attention, "attended_blocks", nearest)
    tokens = text(12)
    losses = scored(landmark_folder, Reading(0), tokens)
    torch.testing.assert_close(losses, training_losses(landmark_folder, tokens), atol=1e-4, rtol=1e-4)


def agreed(landmark: Tensor, at: Tensor, settings: LandmarkSettings, sharing: Sharing) -> Tensor:
    """Attended blocks (1, heads, queries, blocks) where those who share vote one by one."""
    age = block_ages(at, landmark.shape[-1], settings)
    always = always_read(age, settings)
    candidate, chunk = (age > 0) & ~always, settings.recent_blocks * settings.block_size
    heads, queries = range(landmark.shape[1]), range(len(at))
    weights = torch.zeros_like(landmark[0])
    for head in heads:
        for query in queries:
            may = candidate[query].nonzero().flatten()
            weights[head, query, may] = landmark[0, head, query, may].softmax(0)
    attended = always.expand_as(landmark).clone()
    for head in heads:
        for query in queries:
            partners = [q for q in queries if q // chunk == query // chunk] if sharing.tokens else [query]
            voters = [(h, q) for h in (heads if sharing.heads else [head]) for q in partners]
            eligible = {int(b) for _, q in voters for b in candidate[q].nonzero()}
            votes = {b: max(float(weights[h, q, b]) for h, q in voters) for b in eligible}
            for block in sorted(votes, key=lambda b: -votes[b])[: settings.blocks_per_head]:
                attended[0, head, query, block] |= candidate[query, block]
    return attended


@pytest.mark.parametrize("sharing", [Sharing(tokens=True), Sharing(heads=True), Sharing(tokens=True, heads=True)])
def test_a_shared_choice_is_that_of_all_who_vote(
    landmark_folder: Path, monkeypatch: pytest.MonkeyPatch, sharing: Sharing
) -> None:
    tokens, alone = text(16), training.attention.attended_blocks
    own = training_losses(landmark_folder, tokens)

    def shared(landmark: Tensor, at: Tensor, settings: LandmarkSettings, *, tied: bool) -> Tensor:
        return alone(landmark, at, settings, tied=True) if tied else agreed(landmark, at, settings, sharing)

    monkeypatch.setattr(training.attention, "attended_blocks", shared)
    expected = training_losses(landmark_folder, tokens)
    losses = scored(landmark_folder, Reading(FETCH, sharing), tokens)
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(losses, own, atol=1e-2), "sharing shows"


@pytest.mark.parametrize("sharing", [Sharing(tokens=True), Sharing(heads=True), Sharing(tokens=True, heads=True)])
def test_the_papers_cutting_shares_what_is_chosen_and_nothing_else(landmark_folder: Path, sharing: Sharing) -> None:
    tokens = random_tokens(60)
    few = [scored(landmark_folder, Reading(2, s, paper=True), tokens) for s in (Sharing(), sharing)]
    every = [scored(landmark_folder, Reading(100, s, paper=True), tokens) for s in (Sharing(), sharing)]
    assert not torch.allclose(few[0], few[1], atol=1e-2)
    torch.testing.assert_close(every[0], every[1], atol=1e-4, rtol=1e-4)


def test_votes_are_maxima_of_softmaxes() -> None:
    scores = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    weights = scores.softmax(-1)
    for head in range(2):
        for query in range(3):
            torch.testing.assert_close(Sharing(tokens=True).agree(scores)[head, query], weights[head].amax(0))
            torch.testing.assert_close(Sharing(heads=True).agree(scores)[head, query], weights[:, query].amax(0))
    assert Sharing().agree(scores) is scores


# -- which tokens, and what is made of their losses ----------------------------------------------------------


class Told:
    """Tells what it was asked: the token itself, or how many stand before it in its text."""

    def __init__(self, *, past: bool) -> None:
        self._past = past

    def losses(self, tokens: list[int]) -> Tensor:
        return torch.arange(1.0, len(tokens)) if self._past else torch.tensor(tokens[1:], dtype=torch.float32)


def test_every_length_scores_the_same_tokens() -> None:
    losses = segment_losses(Told(past=False), list(range(64)), (8, 16, 64))
    assert losses.shape == (3, 8, 7)
    expected = torch.tensor([float(i) for i in range(64) if i % 8])
    for by_length in losses:
        torch.testing.assert_close(by_length.flatten(), expected)


def test_late_tokens_have_a_long_past_in_long_texts() -> None:
    lengths = (512, 2048, 4096, 16384)
    late = late_part(segment_losses(Told(past=True), [0] * 16384, lengths)[None])
    assert late.shape == (1, 4, 3, 256)
    assert late.flatten(2).amin(-1).tolist() == [[256, 1792, 3840, 7936]]


def test_segments_are_spread_evenly_and_do_not_overlap() -> None:
    assert spread(100, 20, 2) == [15, 65]
    assert spread(100, 100, 1) == [0]
    with pytest.raises(SystemExit, match="fewer --segments"):
        spread(100, 60, 2)


def test_changes_are_paired() -> None:
    """What two rows have in common does not blur how they differ."""
    common = torch.tensor([1.0, 5.0, 3.0, 2.0])[None, :, None].expand(1, 4, 10)
    found = cell(common - 0.1, common)
    assert found.change == pytest.approx(100 * (torch.tensor(-0.1).exp().item() - 1), rel=1e-4)
    assert found.change_error == pytest.approx(0, abs=1e-4)
    assert found.error > 1
    assert found.perplexity == pytest.approx(torch.tensor(2.65).exp().item(), rel=1e-5)


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_prints_rows_and_its_result_as_markdown(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    books = [
        {"title": title, "text": "It was a dark night, and the rain fell. " * 40} for title in (*HELD_OUT, TUNED_ON)
    ]
    data, result, model = tmp_path / "books.jsonl", tmp_path / "result.json", str(repository / "models" / "cairn-4m")
    data.write_text("\n".join(json.dumps(book) for book in books))
    asked = ["--plain", model, "--landmark", model, "--data", str(data), "--json", str(result), "--segments", "1"]
    small = ["--lengths", "32", "128", "--window", "32", "--stride", "16", "--workers", "1", "--rows", "k = 2"]
    monkeypatch.setattr("sys.argv", ["perplexity", *asked, *small])
    assert perplexity.main() == 0
    names = [row["name"] for row in json.loads(result.read_text())["rows"]]
    assert names == [row.name for row in rows(32) if "k = 2" in row.name or row.name.startswith("plain, window")]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    monkeypatch.setattr("sys.argv", ["perplexity", "--print", str(result)])
    assert perplexity.main() == 0
    assert capsys.readouterr().out.strip() == markdown(json.loads(result.read_text())).strip()


def test_a_curve_of_pass_keys_is_printed() -> None:
    printed = markdown({"rows": [{"tokens": 32000, "asked": 4, "right": 3}]})
    assert printed.splitlines()[-1] == "| 32,000 | 75% (3 of 4) |"


def test_the_books_were_held_out() -> None:
    assert TUNED_ON not in HELD_OUT


def test_missing_books_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["perplexity", "--data", str(tmp_path / "books.jsonl")])
    with pytest.raises(SystemExit, match=r"books\.jsonl is missing"):
        perplexity.main()


def test_markdown_tells_the_tuned_numbers() -> None:
    losses = torch.rand(1, 2, 4, 7, generator=torch.Generator().manual_seed(0))
    row = summary("plain, kNN-LM", losses, losses + 0.1, (8, 16), 1.0, {"8": {"share": 0.1, "temperature": 3.0}})
    machine = {"date": "2026-11-23T00:00:00", "cores": 2}
    row_json = json.loads(json.dumps(row, default=vars))
    head = {"books": HELD_OUT, "segments": 1, "lengths": [8, 16], "tuned_on": TUNED_ON, "machine": machine}
    printed = markdown(head | {"rows": [row_json]})
    assert "8: share 0.1, temperature 3" in printed
    assert "-9.5 ± 0.0%" in printed
