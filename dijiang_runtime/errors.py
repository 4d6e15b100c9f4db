"""What the runtime raises.

* DiJiangError
  x ModelLoadError             a model folder that cannot be served, and what to do about it
    + UnsupportedModelError    an architecture or option that this project does not implement
  x InvalidRequestError        the request is wrong; names the parameter
    + ContextLengthError       prompt and answer do not fit the model's positions
  x RequestFailedError         an accepted request that could not be finished
    + NumericalError           the model produced NaN or infinity for this request alone
  x EngineOverloadedError      the waiting queue is full
  x QueueTimeoutError          no slot came free within the time that a request may wait
  x GrammarCheckError          grammars cannot be tried out at present, so none is taken
  x EngineDeadError            the engine process died, hangs, or is not ready yet

Every class carries a message fit for a client: it names no path, class or address.
"""


class DiJiangError(Exception):
    """Base of everything the runtime raises on purpose."""


class ModelLoadError(DiJiangError):
    """A model folder cannot be loaded. Shown to the operator, never to a client."""


class UnsupportedModelError(ModelLoadError):
    """The architecture, or one of its options, is not implemented."""


class InvalidRequestError(DiJiangError):
    """The request is wrong. `param` names the field as the client spelled it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """The prompt, with the tokens asked for, does not fit the positions the model has."""

    def __init__(
        self, num_prompt_tokens: int, max_tokens: int, max_model_len: int, *, param: str = "prompt"
    ) -> None:
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens, but the request has "
            f"{num_prompt_tokens} prompt tokens and asks for {max_tokens} more. "
            "Shorten the prompt or lower max_tokens.",
            param=param,
        )


class RequestFailedError(DiJiangError):
    """An accepted request ended without an answer. Only this request is affected."""


class NumericalError(RequestFailedError):
    """The model's output for this request was not finite."""

    def __init__(self) -> None:
        super().__init__("The model produced a non-finite value for this request.")


class EngineOverloadedError(DiJiangError):
    """The waiting queue is full. `retry_after_seconds` is an estimate of when it will not be."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueTimeoutError(DiJiangError):
    """No slot came free within the time that the request may wait. None of it was computed."""

    def __init__(self) -> None:
        super().__init__("The request waited too long for its turn. Try again later.")
        self.retry_after_seconds = 1.0


class GrammarCheckError(DiJiangError):
    """The process that tries grammars out does not start. Requests without one are not affected."""

    def __init__(self, *, retry_after_seconds: float) -> None:
        super().__init__(
            "Structured output is not available at present: the process that tries grammars out "
            "does not start. Try again later, or ask without a schema or grammar."
        )
        self.retry_after_seconds = retry_after_seconds


class EngineDeadError(DiJiangError):
    """The engine process is gone, stuck, or not ready. It is restarted by its supervisor."""

    def __init__(
        self,
        message: str = "The engine stopped while the request was running. Send it again.",
        *,
        retry_after_seconds: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
