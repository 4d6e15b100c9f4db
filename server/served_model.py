"""What the API process knows of the model it serves: its names, its tokenizer, its template."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from dijiang_runtime.errors import InvalidRequestError, ModelLoadError
from dijiang_runtime.request import SamplingParams
from dijiang_runtime.tokenizer import Tokenizer
from server.chat_template import ChatTemplate
from server.errors import UnknownModelError
from server.protocol.sampling import SamplingDefaults
from server.tool_calls.formats import FORMATS, ToolCallFormat, detect_format

DETECT_PARSER = "auto"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model folder, without its weights: those are the engine's."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    template: ChatTemplate
    tool_format: ToolCallFormat | None
    """How the model calls tools; None if it does not, or in a way that is not known."""
    defaults: SamplingDefaults

    @classmethod
    def load(
        cls, folder: Path, names: tuple[str, ...], *, tool_call_parser: str = DETECT_PARSER
    ) -> Self:
        """Read a model folder.

        Args:
            tool_call_parser: How the model calls tools: `DETECT_PARSER`, a name of `FORMATS`, or
                any other for not at all.

        Raises:
            ModelLoadError: the tokenizer, its template or the generation defaults are not usable.
        """
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.of_model(tokenizer)
        form = FORMATS.get(tool_call_parser)
        if tool_call_parser == DETECT_PARSER:
            form = detect_format(template.source)
        return cls(
            names,
            tokenizer,
            template,
            # A template without tools would not tell the model of them.
            form if template.knows_tools else None,
            load_defaults(folder),
        )

    def resolve_name(self, name: str | None) -> str:
        """The name to answer under. Raises `UnknownModelError` for a name that is not served."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise UnknownModelError(self.names)
        return name


def load_defaults(folder: Path) -> SamplingDefaults:
    """The sampling defaults in a folder's `generation_config.json`, where there is one."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return SamplingDefaults()
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # Hugging Face writes null for what is not set.
        given = {name: value for name, value in settings.items() if value is not None}
        defaults = msgspec.convert(given, SamplingDefaults)
        SamplingParams(**msgspec.structs.asdict(defaults)).validate(vocab_size=0)
    except (ValueError, AttributeError, InvalidRequestError) as exc:
        raise ModelLoadError(f"{path} cannot be used: {exc}.") from exc
    return defaults
