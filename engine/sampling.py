"""How the next token is drawn: `SamplingParams` (validated) and `Sampler` (logits -> token).

Knows no text: stop strings are the server's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.errors import InvalidParameter


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one generation, with vLLM's meaning and ranges.

    Attributes:
        max_tokens: how many tokens to generate at most; 0 only reads the prompt
        temperature: 0 takes the most likely token
        top_p: smallest set of tokens whose probability reaches this
        top_k: the k most likely tokens; 0 means all
        min_p: tokens at least this fraction as likely as the most likely one
        presence_penalty, frequency_penalty: OpenAI's, over the generated tokens
        repetition_penalty: over prompt and generated tokens, 1 means none
        seed: makes the draw reproducible, also in a batch
        logprobs: how many alternatives to report for each token; None reports nothing
        prompt_logprobs: the same for each token of the prompt, which is then computed from its beginning
        ignore_eos: go on after an end token
        stop_token_ids: further end tokens
        logit_bias: added to the logits, by token id
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._within("max_tokens", 0, 1 << 31)
        self._within("temperature", 0.0, 2.0)
        self._within("top_p", 0.0, 1.0)
        self._within("top_k", 0, 1 << 31)
        self._within("min_p", 0.0, 1.0)
        self._within("presence_penalty", -2.0, 2.0)
        self._within("frequency_penalty", -2.0, 2.0)
        self._within("repetition_penalty", 0.01, 10.0)
        self._within("logprobs", 0, 20)
        self._within("prompt_logprobs", 0, 20)
        self._within("seed", -(1 << 63), (1 << 63) - 1)
        if self.top_p == 0.0:
            raise InvalidParameter("top_p", "must be above 0")
        for bias in self.logit_bias.values():
            if not -100.0 <= bias <= 100.0:
                raise InvalidParameter("logit_bias", "every bias must lie between -100 and 100")

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:  # NaN fails too
            raise InvalidParameter(name, f"must lie between {low} and {high}, not {value}")
