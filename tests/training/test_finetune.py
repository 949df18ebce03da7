"""Fine-tuning: a plain model of any family becomes one that is served with landmarks, and runs go on as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import load_model
from tests.models import Bench, save_model
from tests.training.bases import plain_tokenizer, save_base
from training.adaptation import adapt
from training.attention import LandmarkSettings
from training.finetune import main, parser, prepare
from training.records import InputError, Part, to_json
from training.tokenizer import LANDMARK
from training.tuning import Tuning

SETTINGS = LandmarkSettings(block_size=8, recent_blocks=2, sink_blocks=1, blocks_per_head=3)
GEOMETRY = ["--block-size", "8", "--recent-blocks", "2", "--blocks-per-head", "3", "--length", "64"]
METHODS = {"whole": [], "lora": ["--lora", "4"], "muon": ["--muon"]}
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "llama", text)


@pytest.fixture
def command(tmp_path: Path, text: str, base: Path) -> Command:
    """Arguments of a short run on a short text; `name` is that of its output."""
    (tmp_path / "book.txt").write_text(text[:20_000])

    def arguments(*more: str, name: str = "out", base: Path = base) -> list[str]:
        usual = ["--base", str(base), "--data", str(tmp_path / "book.txt"), "--output", str(tmp_path / name)]
        return [*usual, *GEOMETRY, "--batch", "2", "--rate", "1e-2", "--steps", "4", "--report", "2", *more]

    return arguments


def start(arguments: list[str]) -> Tuning:
    return prepare(parser().parse_args(arguments))


def updates(tuning: Tuning, count: int) -> list[float]:
    return [tuning.update() for _ in range(count)]


def some_text(folder: Path, count: int = 150) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, 300, (count,), generator=generator).tolist()


def logits_of_training(tuning: Tuning, tokens: list[int]) -> Tensor:
    """What the model in training predicts for each next text token."""
    whole = torch.tensor([tokens[: len(tokens) // 7 * 7]])
    slots = tuning.adaptation.slots(whole)
    with torch.no_grad():
        logits = tuning.adaptation.logits(slots)[0]
    ids = slots[0].tolist()
    return logits[[i for i in range(len(ids)) if i + 1 == len(ids) or ids[i + 1] != tuning.adaptation.token_id]]


# -- what is written is what was trained ---------------------------------------------------------------------


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-padded": {"vocab_size": 384},
    "gemma2": {},
    "gemma3_text": {},
    "qwen3_moe": {},
    "gpt_neox": {},
    "phi": {},
    "smollm3": {},
    "mistral": {},
}


@pytest.mark.parametrize("method", ["whole", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_serves_what_was_trained(
    family: str, method: str, command: Command, tmp_path: Path, text: str
) -> None:
    folder = save_base(tmp_path / "base", text, family.split("-")[0], **FAMILIES[family])
    tuning = start(command(*METHODS[method], base=folder))
    tokens = some_text(folder, 147)
    before = logits_of_training(tuning, tokens)
    updates(tuning, 2)
    expected = logits_of_training(tuning, tokens)
    assert (expected - before).abs().max() > 1e-3, "nothing was learned"
    tuning.adaptation.save(tmp_path / "out")

    model = load_model(str(tmp_path / "out"))
    assert model.landmarks is not None
    assert vars(model.landmarks) == {"token_id": tuning.adaptation.token_id, **vars(SETTINGS)}
    bench = Bench(tmp_path / "out")
    served = bench.logits(bench.session(), tokens, [50, 1, 96], fetch=SETTINGS.blocks_per_head)
    torch.testing.assert_close(served[:, :320], expected[:, :320], atol=2e-4, rtol=2e-4)


def test_the_command_writes_a_folder_log_and_checkpoint(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command()) == 0
    out = capsys.readouterr().out
    assert "held-out loss: " in out
    lines = [json.loads(line) for line in (tmp_path / "out.run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[0]["held_out_plain"] > 0
    assert all({"loss", "held_out", "tokens_per_second", "rate"} <= line.keys() for line in lines[1:])
    assert (tmp_path / "out.run" / "checkpoint.pt").exists()
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in (tmp_path / "out").iterdir())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(command()[1]).chat_template
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2), "special tokens are those of the base"


def test_weights_keep_the_type_that_they_came_with(command: Command, tmp_path: Path, base: Path, text: str) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16").save_pretrained(tmp_path / "base")
    plain_tokenizer(text).save_pretrained(tmp_path / "base")
    tuning = start(command(base=tmp_path / "base"))
    assert {p.dtype for p in tuning.adaptation.trained().values()} == {torch.float32}
    tuning.adaptation.save(tmp_path / "out")
    assert load_model(str(tmp_path / "out")).dtype == torch.bfloat16


# -- the landmark --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [321, 384])
@pytest.mark.parametrize("tied", [False, True])
def test_tables_grow_only_if_they_must_and_the_row_is_the_mean(
    tied: bool, rows: int, tmp_path: Path, text: str
) -> None:
    vocabulary = 320 if rows == 321 else rows
    folder = save_base(tmp_path / "base", text, vocab_size=vocabulary, tie_word_embeddings=tied)
    before = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    adaptation = adapt(str(folder), SETTINGS, 0, 1)
    embedding, head = adaptation.tables()[0], adaptation.tables()[-1]
    assert adaptation.token_id == 320
    assert embedding.shape[0] == head.shape[0] == rows
    assert (embedding is head) == tied
    torch.testing.assert_close(embedding[320], before[:320].mean(0))
    assert torch.equal(embedding[:320], before[:320])


def test_the_landmark_is_a_special_token_that_text_cannot_name(base: Path, tmp_path: Path) -> None:
    adaptation = adapt(str(base), SETTINGS, 0, 1)
    adaptation.save(tmp_path / "out")
    saved = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert saved.get_added_tokens_decoder()[adaptation.token_id].special
    assert saved.encode(LANDMARK).ids == [adaptation.token_id]
    saved.encode_special_tokens = True
    assert adaptation.token_id not in saved.encode(LANDMARK).ids


def test_a_tokenizer_that_knows_the_token_keeps_it(tmp_path: Path, text: str) -> None:
    folder = save_base(tmp_path / "base", text)
    tokenizer = plain_tokenizer(text)
    tokenizer.add_tokens([LANDMARK, "<|other|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    adaptation = adapt(str(folder), SETTINGS, 0, 1)
    assert adaptation.token_id == 320
    assert len(adaptation.tokenizer) == 322


def test_lora_trains_the_landmark_s_row_and_no_other(command: Command) -> None:
    tuning = start(command("--lora", "4"))
    before = tuning.adaptation.model.get_input_embeddings()(torch.arange(321)).detach().clone()
    updates(tuning, 2)
    after = tuning.adaptation.model.get_input_embeddings()(torch.arange(321)).detach()
    changed = (after != before).any(-1)
    assert changed.nonzero().flatten().tolist() == [320]
    trained = sum(p.numel() for p in tuning.adaptation.trained().values())
    assert trained < 0.2 * sum(p.numel() for p in tuning.adaptation.model.parameters())


# -- loss ----------------------------------------------------------------------------------------------------


def test_held_out_losses_are_over_the_same_text_tokens(command: Command) -> None:
    tuning = start(command())
    tokens, weights = tuning.held
    model = AutoModelForCausalLM.from_pretrained(command()[1], attn_implementation="eager")
    loss = count = 0.0
    for row, weight in zip(tokens, weights, strict=True):
        with torch.no_grad():
            predicted = model(row[None]).logits[0].log_softmax(-1)
        loss -= float((predicted[:-1].gather(1, row[1:, None])[:, 0] * weight[1:]).sum())
        count += float(weight[1:].sum())
    assert tuning.held_out(plain=True) == pytest.approx(loss / count, abs=1e-3)

    slots = tuning.adaptation.slots(tokens)
    kept = slots != tuning.adaptation.token_id
    assert torch.equal(slots[kept].view_as(tokens), tokens)
    assert kept[0].tolist() == ([True] * 7 + [False]) * 8
    assert torch.equal(tuning.adaptation.slot_weights(weights)[kept].view_as(weights), weights)
    assert not tuning.adaptation.slot_weights(weights)[~kept].any()


def test_it_learns(command: Command) -> None:
    tuning = start(command("--steps", "60"))
    before = tuning.held_out()
    losses = updates(tuning, 60)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert tuning.held_out() < before - 0.3


def test_accumulated_batches_are_one_larger_batch(command: Command) -> None:
    large, small = start(command("--batch", "4")), start(command("--batch", "2", "--accumulate", "2", name="small"))
    assert updates(large, 2) == pytest.approx(updates(small, 2), rel=1e-5)
    for mine, yours in zip(large.adaptation.trained().values(), small.adaptation.trained().values(), strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-3, rtol=1e-3)


def test_a_crowd_is_met_in_training_and_not_in_measuring(command: Command) -> None:
    alone, crowd = start(command()), start(command("--crowd", "16", name="crowd"))
    assert alone.held_out() == crowd.held_out()
    assert alone.update() != crowd.update()


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(command: Command) -> None:
    exact, short = start(command()), start(command("--bf16", name="short"))
    first, second = exact.update(), short.update()
    assert first != second
    assert second == pytest.approx(first, rel=0.02)
    assert {p.dtype for p in short.adaptation.trained().values()} == {torch.float32}


# -- going on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_as_if_it_had_not_stopped(method: str, command: Command) -> None:
    options = [*METHODS[method], "--steps", "6", "--crowd", "16"]
    whole = start(command(*options, name="whole"))
    losses = updates(whole, 6)
    first = start(command(*options, name="parts"))
    assert updates(first, 2) == losses[:2]
    first.save()
    second = start(command(*options, name="parts"))
    assert second.step == 2
    assert updates(second, 4) == losses[2:]
    for mine, yours in zip(whole.adaptation.trained().values(), second.adaptation.trained().values(), strict=True):
        assert torch.equal(mine, yours)


def test_a_finished_command_can_be_given_again_for_more_steps(command: Command, tmp_path: Path) -> None:
    assert main(command()) == 0
    assert main(command("--steps", "6")) == 0
    lines = (tmp_path / "out.run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 2, 4, 6]


def test_another_run_is_not_gone_on_with(command: Command) -> None:
    start(command()).save()
    with pytest.raises(InputError, match=r"holds a run with rate 0.01, not 0.5; .* or another --run"):
        start(command("--rate", "0.5"))


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    (["--length", "60"], "not a multiple of --block-size 8; give 56 or 64"),
    (["--length", "32"], "none is ever fetched; give at least 40"),
    (["--crowd", "8", "--batch", "1"], "give a --batch of at least 2"),
    (["--crowd", "80"], "longer than a row"),
    (["--muon", "--lora", "4"], "leave it or --lora out"),
    (["--shares", "1", "2"], "for each of the 1 files"),
    (["--rate", "0"], "above 0"),
    (["--blocks-per-head", "0"], "--blocks-per-head must be at least 1, not 0"),
    (["--held-out", "1.5"], "a share lies between 0 and 1"),
    (["--held-out", "Nobody's Book"], "no text has the title \"Nobody's Book\""),
    (["--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
    (["--base", "./nowhere"], "there is no such folder"),
])  # fmt: skip
def test_senseless_options_are_refused(
    options: list[str], message: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(*options)) == 2
    assert message in capsys.readouterr().err


def test_a_short_text_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(InputError, match="less than one row of 56; give more text or a smaller --length"):
        start(command("--data", str(tmp_path / "short.txt")))


def test_a_sample_longer_than_a_row_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(to_json([Part("Many words. " * 50)]))
    with pytest.raises(InputError, match="does not fit a row of 56; give a longer --length"):
        start(command("--data", str(tmp_path / "long.jsonl")))


def test_an_output_with_something_in_it_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; give another --output"):
        start(command())


def test_models_that_cannot_learn_landmarks_are_refused(
    command: Command, tmp_path: Path, base: Path, text: str
) -> None:
    has = save_model("llama", tmp_path / "has", landmarks=True)
    with pytest.raises(InputError, match="already has trained landmarks, in blocks of 8; give a plain model"):
        start(command(base=has))
    bare = save_model("llama", tmp_path / "bare")
    with pytest.raises(InputError, match=r"no .*tokenizer"):
        start(command(base=bare))
    short = save_base(tmp_path / "short", text, max_position_embeddings=16)
    with pytest.raises(InputError, match=r"reach 32 positions back, but the model knows 16; take fewer"):
        start(command(base=short))
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="models of type 'gpt2' are not supported"):
        start(command(base=tmp_path / "gpt2"))
