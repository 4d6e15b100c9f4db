"""Several consecutive outputs of one request as one."""

from collections.abc import Sequence as Seq
from itertools import chain

from dijiang_runtime.request import RequestOutput


def merge_outputs(outputs: Seq[RequestOutput]) -> RequestOutput:
    """Return what a client that reads these outputs, oldest first, has learned in the end."""
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    has_logprobs = any(output.logprobs is not None for output in outputs)
    prompt_logprobs = (o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None)
    return RequestOutput(
        request_id=last.request_id,
        text="".join(output.text for output in outputs),
        token_ids=tuple(chain.from_iterable(output.token_ids for output in outputs)),
        logprobs=(
            tuple(chain.from_iterable(output.logprobs or () for output in outputs))
            if has_logprobs
            else None
        ),
        prompt_logprobs=next(prompt_logprobs, None),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
        num_prompt_tokens=last.num_prompt_tokens,
        num_output_tokens=last.num_output_tokens,
        num_copied_tokens=last.num_copied_tokens,
        timings=last.timings,
        embedding=last.embedding,
    )
