"""How models write calls of tools: one file per format, and the rule that chooses one for a model."""

from __future__ import annotations

from server.tool_formats.base import Call, CallDelta, Function, Parsed, ToolFormat, ToolParser, merged
from server.tool_formats.hermes import Hermes
from server.tool_formats.llama3_json import Llama3Json
from server.tool_formats.mistral import Mistral

__all__ = ["FORMATS", "Call", "CallDelta", "Function", "Parsed", "ToolFormat", "ToolParser", "format_of", "merged"]

FORMATS: dict[str, ToolFormat] = {each.name: each for each in (Mistral(), Hermes(), Llama3Json())}


def format_of(template: str, setting: str = "auto") -> tuple[ToolFormat, bool]:
    """The format of a model's calls, and whether its chat template teaches it: the setting's, or the first that fits.

    A model whose template teaches none is told of Hermes's.
    """
    if setting != "auto":
        return FORMATS[setting], FORMATS[setting].fits(template)
    fitting = next((each for each in FORMATS.values() if each.fits(template)), None)
    return fitting or FORMATS["hermes"], fitting is not None
