"""What all requests share: how a body is read, and what is refused rather than ignored."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError

from dijiang_runtime.errors import InvalidRequestError
from server.errors import UnsupportedParameterError

M = TypeVar("M", bound="RequestModel")

MAX_REPORTED_FIELDS = 16

# Fields that would change the answer, each with the values that ask for nothing. Ignoring one would
# give an unconstrained answer to somebody who relies on the constraint.
UNSUPPORTED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "audio": (),
    "best_of": (1,),
    "bnf_schema": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "custom_logit_processor": (),
    "documents": ([],),
    "dry_multiplier": (0, 0.0),
    "early_stopping": (False,),
    "ebnf": (),
    "echo": (False,),
    "file_url": (),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "image_url": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "lora_request": (),
    "max_new_tokens": (),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "n_predict": (),
    "prediction": (),
    "prompt_embeds": (),
    "reasoning": (),
    "regex": (),
    "repetition_detection": (),
    "skip_special_tokens": (True,),
    "stop_regex": ([], ""),
    "structural_tag": (),
    "suffix": ("",),
    "thinking_token_budget": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "typical_p": (1, 1.0),
    "use_beam_search": (False,),
    "web_search_options": (),
}

# What a union of types expects, in words: pydantic would report a failure of each member.
EXPECTATIONS = {
    "input": "must be a string, a list of strings, a list of token ids, or a list of those",
    "prompt": "must be a string, a list of strings, a list of token ids, or a list of those",
    "stop": "must be a string or a list of strings",
    "tool_choice": "must be 'none', 'auto', 'required' or an object that names a function",
    "content": "must be a string or a list of text parts",
}

_HEADER_SAFE = re.compile(r"[\w.-]{1,64}", re.ASCII)


class RequestModel(BaseModel):
    """A JSON object from a client. Unknown fields are kept aside, to be refused or reported."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_FIELDS
    """Fields that are refused, each with the values that ask for nothing."""

    expectations: ClassVar[Mapping[str, str]] = EXPECTATIONS
    """What fields of several types must be, in words."""

    def check_unsupported(self, where: str = "") -> None:
        """Raise `UnsupportedParameterError` for a field that would change the answer. `where` is
        what stands before its name in the request."""
        for name, value in (self.model_extra or {}).items():
            if name not in self.unsupported or value is None:
                continue
            # 1 == True in Python, but not in JSON.
            harmless = self.unsupported[name]
            if not any(value == h and type(value) is type(h) for h in harmless):
                hint = " Use structured_outputs." if name.startswith("guided_") else ""
                raise UnsupportedParameterError(
                    f"{where}{name} is not supported by this server.{hint}",
                    param=f"{where}{name}",
                )

    def ignored_fields(self) -> list[str]:
        """Unknown fields that have no effect, as far as they can stand in a header."""
        names = (name for name in self.model_extra or {} if name not in self.unsupported)
        return sorted(name for name in names if _HEADER_SAFE.fullmatch(name))[:MAX_REPORTED_FIELDS]


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request: what was read, what was written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


MaybeUsage = Usage | None | msgspec.UnsetType
"""Absent from a stream's chunks, or null in them, or the tokens so far."""


def parse_body(model: type[M], body: bytes) -> M:
    """Read a request body.

    Raises:
        InvalidRequestError: it is not JSON, or not of this form; names the field, echoes nothing.
        UnsupportedParameterError: it asks for something that is not implemented.
    """
    try:
        request = model.model_validate_json(body)
    except ValidationError as exc:
        raise _first_error(exc, model.expectations) from None
    request.check_unsupported()
    return request


def _first_error(exc: ValidationError, expectations: Mapping[str, str]) -> InvalidRequestError:
    error = exc.errors(include_input=False, include_url=False, include_context=False)[0]
    if error["type"] == "json_invalid":
        return InvalidRequestError(f"The body is not valid JSON: {error['msg'][14:]}.")
    param = _spell(error["loc"])
    if not param:
        return InvalidRequestError("The body must be a JSON object.")
    field = re.split(r"[.\]]", param)[-1]
    if field in expectations and error["type"] != "missing":
        return InvalidRequestError(f"{param} {expectations[field]}.", param=param)
    rule = error["msg"].removeprefix("Input should be ")
    rule = "is required" if error["type"] == "missing" else f"must be {rule}"
    return InvalidRequestError(f"{param} {rule}.", param=param)


def _spell(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`.

    Stops where the location leaves the fields that we declare: at the members of a union, and at
    the keys of a mapping, which are the client's own text.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part}" if path else part
        if path.rpartition(".")[2] in {*EXPECTATIONS, "logit_bias"}:
            break
    return path
