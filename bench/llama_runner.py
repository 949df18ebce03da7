"""llama.cpp's side of `bench.peers`: a program for another environment, which has llama_cpp, gguf and numpy only.

    llama_runner.py convert FOLDER GGUF                      a model in transformers' format, in llama.cpp's
    llama_runner.py logits GGUF NOISE --context 1024 --tokens 5,7,9 --out FILE    logits of tokens behind noise
    llama_runner.py steps GGUF NOISE --context 131072 --batch 1 --count 16        seconds of steps behind noise, as JSON

Reading 131,072 tokens would take hours, so keys and values are not computed: they are handed over as a saved state of a
sequence would be (`llama_state_seq_set_data`), in pieces, so that no second copy of them has to fit into memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf.utility import SafetensorsLocal
from numpy.typing import NDArray

STATE_MAGIC = 0xAF143CD8
"""What a sequence's state begins with, for `llama_state_seq_set_data`."""
CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
SEQUENCE, PIECE = 0, 1
"""The measured sequence, and the one that pieces of a state are read into: reading replaces what a sequence has."""
ERROR = 4
"""GGML_LOG_LEVEL_ERROR."""
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
TYPES = {"F32": (np.float32, gguf.GGMLQuantizationType.F32), "BF16": (np.uint16, gguf.GGMLQuantizationType.BF16)}


# -- a model in GGUF -------------------------------------------------------------------------------------------


def convert(folder: Path, path: Path) -> None:
    """Write the model of a folder with `config.json` and `model.safetensors`: same weights, same precision."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")  # token ids in, logits out
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, tensor in SafetensorsLocal(folder / "model.safetensors").tensors.items():
        dtype, kind = TYPES[tensor.dtype]
        weights = tensor.mmap_bytes().view(dtype).reshape(tensor.shape)
        if architecture is gguf.MODEL_ARCH.LLAMA and ".q_proj." in name:
            weights = neighbours(weights, config["num_attention_heads"])
        if architecture is gguf.MODEL_ARCH.LLAMA and ".k_proj." in name:
            weights = neighbours(weights, config["num_key_value_heads"])
        if weights.ndim == 1:  # llama.cpp multiplies by norms in fp32 only
            weights = widened(weights)
            kind = gguf.GGMLQuantizationType.F32
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"{name}: llama.cpp's {config['model_type']} has no such tensor")
        writer.add_tensor(known, np.ascontiguousarray(weights), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neighbours(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of heads as llama.cpp's llama has them: it rotates dimensions 2i and 2i + 1, transformers i and i + d/2."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def widened(weights: NDArray[Any]) -> NDArray[np.float32]:
    """fp32 of what is fp32 already, or of bf16, which are its upper halves."""
    if weights.dtype == np.float32:
        return weights
    return (weights.astype(np.uint32) << 16).view(np.float32)


# -- a sequence behind noise -------------------------------------------------------------------------------------


def state(noise: NDArray[np.float16], start: int, *, transposed: bool) -> bytes:
    """Keys and values as llama.cpp saves them, of positions from `start` on.

    Shape of the noise: (2, layers, positions, key-value heads × head_dim); `transposed` keeps values by dimension.
    """
    layers, positions, width = noise.shape[1:]
    cells = np.zeros(positions, CELL)
    cells["position"], cells["sequences"], cells["sequence"] = np.arange(start, start + positions), 1, PIECE
    streams = 1
    parts = [np.array([STATE_MAGIC, PIECE, streams, positions], "<u4"), cells, np.array([transposed, layers], "<u4")]
    kind = np.array([llama_cpp.GGML_TYPE_F16], "<i4")
    for keys in noise[0]:
        parts += [kind, np.array([keys[0].nbytes], "<u8"), keys]
    for values in noise[1]:
        if transposed:
            parts += [kind, np.array([values.itemsize, width], "<u4"), values.T]
        else:
            parts += [kind, np.array([values[0].nbytes], "<u8"), values]
    return b"".join(part.tobytes() for part in parts)


def log_errors(level: int, text: bytes, _: object) -> None:
    """llama.cpp tells much about a model that it loads, all of it known here."""
    if level == ERROR:
        sys.stderr.write(text.decode())


LOG = llama_cpp.llama_log_callback(log_errors)
"""A name, because llama.cpp calls it as long as the process lives."""


class Sequence:
    """A sequence of `context` positions of noise, in fp16, and what llama.cpp computes behind it."""

    def __init__(self, path: Path, noise: NDArray[np.float16], context: int, options: argparse.Namespace) -> None:
        self.context = context
        llama_cpp.llama_log_set(LOG, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context + options.batch
        settings.n_batch = settings.n_ubatch = options.batch
        settings.n_threads = settings.n_threads_batch = options.threads
        settings.n_seq_max = settings.n_outputs_max = 2  # the least that two sequences take
        settings.kv_unified = True  # cells of one sequence can be given to the other without a copy
        self._flash = options.flash_attention == "on"
        settings.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if self._flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self._llama = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._llama:
            raise RuntimeError(f"llama.cpp has no memory for {settings.n_ctx} positions")
        self._memory = llama_cpp.llama_get_memory(self._llama)
        self._fill(noise)

    def _fill(self, noise: NDArray[np.float16]) -> None:
        """The same noise again and again: what full attention costs does not depend on what it reads."""
        kinds, layers, length, heads, _ = noise.shape
        if llama_cpp.llama_model_rope_type(self._model) == llama_cpp.LLAMA_ROPE_TYPE_NORM:
            keys = neighbours(noise[0].reshape(-1, heads * noise.shape[-1]).T, heads).T
            noise = np.stack([keys.reshape(noise.shape[1:]), noise[1]])
        noise = noise.reshape(kinds, layers, length, -1)
        for start in range(0, self.context, length):
            piece = state(noise[:, :, : self.context - start], start, transposed=not self._flash)
            data = (ctypes.c_uint8 * len(piece)).from_buffer_copy(piece)
            if llama_cpp.llama_state_seq_set_data(self._llama, data, len(piece), PIECE) != len(piece):
                raise RuntimeError("llama.cpp does not read this state of a sequence: does its version differ?")
            llama_cpp.llama_memory_seq_cp(self._memory, PIECE, SEQUENCE, -1, -1)
            llama_cpp.llama_memory_seq_rm(self._memory, PIECE, -1, -1)

    def step(self, tokens: list[int]) -> NDArray[np.float32]:
        """Compute these tokens at once; the logits of the last one, (vocabulary,), valid until the next step."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if code := llama_cpp.llama_decode(self._llama, llama_cpp.llama_batch_get_one(ids, len(tokens))):
            raise RuntimeError(f"llama_decode returned {code}")
        logits = llama_cpp.llama_get_logits_ith(self._llama, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,))

    def rewind(self) -> None:
        """Forget everything behind the noise."""
        llama_cpp.llama_memory_seq_rm(self._memory, SEQUENCE, self.context, -1)


def logits(options: argparse.Namespace) -> None:
    """Write the logits of each token, (tokens, vocabulary) in fp32; each attends to the noise and those before it."""
    tokens = [int(token) for token in options.tokens.split(",")]
    options.batch = len(tokens)
    sequence = Sequence(options.gguf, np.load(options.noise), options.context, options)
    np.save(options.out, np.stack([sequence.step([token]).copy() for token in tokens]))


def steps(options: argparse.Namespace) -> None:
    """For each line that comes, a step of `batch` tokens, all behind the same context; print its seconds."""
    sequence = Sequence(options.gguf, np.load(options.noise), options.context, options)
    for _ in range(2):  # the first ones also pay for threads and for pages of the file
        sequence.step([7])
        sequence.rewind()
    for _ in sys.stdin:
        begun = time.perf_counter()
        sequence.step([7] * options.batch).argmax()
        print(time.perf_counter() - begun, flush=True)
        sequence.rewind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    conversion = commands.add_parser("convert")
    conversion.add_argument("folder", type=Path)
    conversion.add_argument("gguf", type=Path)
    conversion.set_defaults(run=lambda options: convert(options.folder, options.gguf))
    for name, run in (("logits", logits), ("steps", steps)):
        command = commands.add_parser(name)
        command.add_argument("gguf", type=Path)
        command.add_argument("noise", type=Path, help=".npy, fp16: (2, layers, positions, key-value heads, head_dim)")
        command.add_argument("--context", type=int, required=True, help="positions of noise")
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--flash-attention", choices=("on", "off"), default="on")
        command.set_defaults(run=run)
    commands.choices["logits"].add_argument("--tokens", required=True, help="ids, with commas")
    commands.choices["logits"].add_argument("--out", type=Path, required=True)
    commands.choices["steps"].add_argument("--batch", type=int, required=True, help="tokens of a step")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
