"""`python -m bench.peers --shape llama-1b --contexts 4096,32768,131072`: Cairn beside llama.cpp, with the same weights.

Milliseconds per decoded token, and tokens per second of reading in steps of 512 tokens, both against the context.
llama.cpp lives in an environment of its own: `python -m bench.peers --install` makes it, once, with the versions of
`bench/peers.txt`; pip compiles llama.cpp for this machine's processor, which takes ten minutes and a C++ compiler.

Both sides have the same random weights in the same precision, as many threads, one sequence, and a cache filled with
noise. Cairn retrieves as it does by default. llama.cpp attends to everything and keeps keys and values in fp16, its
default. It decodes with and without flash attention, and the faster one counts. It reads with flash attention only,
which is the faster one there, and without it the scores of all heads take 8 GiB at 131,072 tokens in the 1B shape.

At each context the sides take turns, some steps each (`bench.turns`); every step begins right behind the same context.
Before that, the logits of some tokens behind noise are compared with those of transformers:
model and cache have to be the same on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from bench.noise import Cairn
from bench.report import write_json
from bench.shapes import SHAPES, beside, made, served
from bench.turns import Timed, ratio, several, take_turns
from engine import EngineConfig, LoadedModel

ENVIRONMENT = Path("runs/peers")
REQUIREMENTS = Path(__file__).with_name("peers.txt")
RUNNER = Path(__file__).with_name("llama_runner.py")
NOISE = 1024
"""Positions of noise; longer caches repeat them on llama.cpp's side."""
COMPARED = 32
"""Tokens whose logits are compared."""
LOWEST_CORRELATION = 0.99
"""Of a token's logits on two sides. Rounding to bf16 leaves 0.997, eight missing positions of 1,024 less than 0.5."""
TURN = 4
"""Tokens that a side decodes in its turn."""
READ = EngineConfig().step_tokens


@dataclass(frozen=True)
class Agreement:
    """llama.cpp's logits beside transformers', of tokens behind `context` positions of noise."""

    context: int
    tokens: int
    correlation: float
    """The lowest of a token."""
    same_argmax: float
    """Share of the tokens."""
    correlation_without_context: float
    """Mean correlation with llama.cpp's own logits of the same tokens behind nothing: low, since the noise is read."""


@dataclass(frozen=True)
class Decode:
    """One context length; milliseconds are medians over turns."""

    context: int
    ratio: float
    ratio_of_fastest: float
    """Of the fastest turn on either side: what other work on the machine disturbs least."""
    cairn_ms: float
    llama_ms: float
    """The lower one of the next two."""
    flash_ms: float
    plain_ms: float


@dataclass(frozen=True)
class Prefill:
    """Reading `tokens` tokens at once behind a context; medians over turns."""

    context: int
    tokens: int
    ratio: float
    ratio_of_fastest: float
    cairn_tokens_per_second: float
    llama_tokens_per_second: float


class LlamaCpp:
    """llama.cpp in its environment, and one model's files for it, in `folder`."""

    def __init__(self, environment: Path, folder: Path, model: PreTrainedModel, noise: Tensor) -> None:
        self._python = interpreter(environment)
        self._model, self._noise, self._logits = folder / "model.gguf", folder / "noise.npy", folder / "logits.npy"
        np.save(self._noise, noise.half().numpy())
        model.save_pretrained(folder, max_shard_size="1TB")  # in one file
        self._run("convert", folder, self._model)
        (folder / "model.safetensors").unlink()

    def logits(self, context: int, tokens: list[int]) -> Tensor:
        """(tokens, vocabulary) in fp32, behind `context` positions of noise."""
        ids = ",".join(map(str, tokens))
        files = self._model, self._noise, "--out", self._logits
        self._run("logits", *files, "--context", context, "--tokens", ids, "--threads", torch.get_num_threads())
        return torch.from_numpy(np.load(self._logits))

    @contextmanager
    def steps(self, context: int, batch: int, *, flash: bool = True) -> Iterator[Timed]:
        """A step of `batch` tokens right behind `context` positions of noise, as often as it is called."""
        numbers = {"context": context, "batch": batch, "threads": torch.get_num_threads()}
        options = [f"--{name}={number}" for name, number in numbers.items()]
        flag = "--flash-attention=" + ("on" if flash else "off")
        command = self._command("steps", self._model, self._noise, *options, flag)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            asked, told = process.stdin, process.stdout
            assert asked is not None
            assert told is not None

            def step() -> float:
                asked.write("step\n")
                asked.flush()
                return float(told.readline())

            yield step

    def _run(self, *arguments: object) -> None:
        subprocess.run(self._command(*arguments), check=True)

    def _command(self, *arguments: object) -> list[str]:
        # -P: the runner's folder has modules of ours, which this environment cannot import.
        return [str(self._python), "-P", str(RUNNER), *map(str, arguments)]


def interpreter(environment: Path) -> Path:
    return environment.absolute() / "bin" / "python"


def install(environment: Path, requirements: Path = REQUIREMENTS) -> None:
    """Make the environment, and compile llama.cpp in it."""
    venv.create(environment, with_pip=True)
    pip = [str(interpreter(environment)), "-m", "pip", "install", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-binary", "llama-cpp-python", "--requirement", str(requirements)], check=True)


def versions(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Package → version that the environment is made with."""
    lines = [line for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def noise_for(model: PreTrainedModel) -> Tensor:
    """(2, layers, positions, key-value heads, head_dim): numbers that bf16 and fp16 both hold exactly."""
    config = model.config
    shape = (2, config.num_hidden_layers, NOISE, config.num_key_value_heads, config.head_dim)
    return torch.randn(shape).bfloat16()


def transformers_logits(model: PreTrainedModel, noise: Tensor, tokens: list[int]) -> Tensor:
    """(tokens, vocabulary) in fp32, behind all of the noise."""
    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(noise.to(model.dtype).transpose(2, 3).unbind(1)):
        cache.update(keys[None], values[None], layer)
    return model(torch.tensor([tokens]), past_key_values=cache).logits[0].float()


def correlations(one: Tensor, other: Tensor) -> Tensor:
    """(tokens,) of logits (tokens, vocabulary)."""
    one, other = (logits - logits.mean(-1, keepdim=True) for logits in (one, other))
    return functional.cosine_similarity(one, other, dim=-1)


def agreement(model: PreTrainedModel, llama: LlamaCpp, noise: Tensor) -> Agreement:
    """Whether llama.cpp computes the same model behind the same keys and values."""
    tokens = torch.randint(model.config.vocab_size, (COMPARED,)).tolist()
    theirs, ours = llama.logits(NOISE, tokens), transformers_logits(model, noise, tokens)
    alone = correlations(theirs, llama.logits(0, tokens)).mean()
    same = (theirs.argmax(-1) == ours.argmax(-1)).float().mean()
    lowest = correlations(theirs, ours).min()
    return Agreement(NOISE, COMPARED, *(round(float(number), 4) for number in (lowest, same, alone)))


def cairn_steps(model: LoadedModel, context: int, batch: int) -> Timed:
    """As `LlamaCpp.steps`; kernels are compiled, and memory is touched."""
    cairn = Cairn(model, EngineConfig(), context, batch)

    def step() -> float:
        cairn.session.computed = context
        return cairn.step(batch)

    take_turns([step], 2)
    return step


def decode(model: LoadedModel, llama: LlamaCpp, context: int, turns: int) -> Decode:
    """Both sides at one context, in each turn `TURN` times the token that follows it."""
    mine, found = cairn_steps(model, context, 1), []
    for flash in (True, False):
        with llama.steps(context, 1, flash=flash) as step:
            found.append(take_turns([several(mine, TURN), several(step, TURN)], turns))
    medians = [1000 * statistics.median(theirs) for _, theirs in found]
    cairn, theirs = found[medians.index(min(medians))]
    times = (round(each, 2) for each in (1000 * statistics.median(cairn), min(medians), *medians))
    return Decode(context, *ratios(cairn, theirs), *times)


def prefill(model: LoadedModel, llama: LlamaCpp, context: int, turns: int) -> Prefill:
    """Both sides at one context, in each turn the `READ` tokens that follow it."""
    with llama.steps(context, READ) as step:
        cairn, theirs = take_turns([cairn_steps(model, context, READ), step], turns)
    rates = (round(READ / statistics.median(seconds), 2) for seconds in (cairn, theirs))
    return Prefill(context, READ, *ratios(cairn, theirs), *rates)


def ratios(cairn: list[float], theirs: list[float]) -> tuple[float, float]:
    """How many times as long the other side takes: the median over turns, and by the fastest of them."""
    return round(ratio(theirs, cairn), 2), round(min(theirs) / min(cairn), 2)


def show(shape: str, decoded: list[Decode], read: list[Prefill]) -> None:
    sides = f"{'context':>9}{'ratio':>9}{'fastest':>9}{'cairn':>10}{'llama.cpp':>12}"
    print(f"\n{shape}, decode, ms per token\n{sides}{'flash':>10}{'plain':>10}")
    for row in decoded:
        times = f"{row.cairn_ms:>10.1f}{row.llama_ms:>12.1f}{row.flash_ms:>10.1f}{row.plain_ms:>10.1f}"
        print(f"{row.context:>9}{row.ratio:>8.2f}x{row.ratio_of_fastest:>8.2f}x{times}")
    print(f"\n{shape}, prefill, tokens per second\n{sides}")
    for each in read:
        rates = f"{each.cairn_tokens_per_second:>10.1f}{each.llama_tokens_per_second:>12.1f}"
        print(f"{each.context:>9}{each.ratio:>8.2f}x{each.ratio_of_fastest:>8.2f}x{rates}")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the environment, measure nothing")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="where llama.cpp is, or will be")
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument("--contexts", type=numbers, default="4096,32768,131072", help="where to decode")
    parser.add_argument("--turns", type=int, default=6, help=f"of decoding at each context, {TURN} tokens each")
    parser.add_argument("--depths", type=numbers, default="0,8192,131072", help="contexts behind which to read")
    parser.add_argument("--reads", type=int, default=2, help=f"turns of reading at each depth, {READ} tokens each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    if options.install:
        install(options.environment)
        return 0
    if not interpreter(options.environment).exists():
        parser.error(f"{options.environment} has no llama.cpp: make it with `python -m bench.peers --install`")
    torch.set_num_threads(options.threads)
    model = made(options.shape)
    noise = noise_for(model)
    with tempfile.TemporaryDirectory(dir=options.environment) as folder:
        llama = LlamaCpp(options.environment, Path(folder), model, noise)
        found = agreement(beside(model), llama, noise)
        print(found, flush=True)
        if found.correlation < LOWEST_CORRELATION:
            parser.error("llama.cpp does not compute the same model behind the same context")
        loaded, decoded, read = served(model), [], []
        for context in options.contexts:
            decoded.append(decode(loaded, llama, context, options.turns))
            print(decoded[-1], flush=True)
        for context in options.depths:
            read.append(prefill(loaded, llama, context, options.reads))
            print(read[-1], flush=True)
    show(options.shape, decoded, read)
    rows = {"decode": [asdict(row) for row in decoded], "prefill": [asdict(row) for row in read]}
    write_json(options.json, {"shape": options.shape, "versions": versions(), "agreement": asdict(found)} | rows)
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        raise SystemExit(main())
