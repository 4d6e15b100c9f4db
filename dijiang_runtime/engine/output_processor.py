"""Tokens to text: what a client is told after each step."""

from dijiang_runtime.engine.detokenizer import Detokenizer, StopMatch, StopMatcher
from dijiang_runtime.engine.embedding import embedding_bytes
from dijiang_runtime.engine.sequence import RawLogprobs, Sequence, StepResult
from dijiang_runtime.request import (
    NO_LOGPROBS,
    FinishReason,
    PositionLogprobs,
    RequestOutput,
    TokenLogprob,
)
from dijiang_runtime.tokenizer import Tokenizer

LOGPROB_FLOOR = -9999.0


class _Transcript:
    """One sequence's text, and the prompt's logprobs until they are sent."""

    def __init__(self, tokenizer: Tokenizer, sequence: Sequence) -> None:
        sampling = sequence.request.sampling
        self._detokenizer = Detokenizer(
            tokenizer, sequence.request.prompt_token_ids, shown=sampling.shown_token_ids
        )
        self._stops = StopMatcher(sampling.stop, include_stop=sampling.include_stop_str_in_output)
        self._stopped = False
        # Nothing predicts the first token of a prompt.
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None
        if sampling.prompt_logprobs != NO_LOGPROBS:
            self._prompt_logprobs = [None]

    def add(self, token_id: int, *, may_stop: bool) -> tuple[str, str | None]:
        """Return the text that a token makes final, and the stop string that it completes."""
        found = self._stops.add(self._detokenizer.add(token_id), may_stop=may_stop)
        if isinstance(found, StopMatch):
            self._stopped = True
            return found.text, found.stop
        return found, None

    def finish(self) -> str:
        """Return the text that was held back. What follows a stop string is dropped."""
        if self._stopped:
            return ""
        tail = self._stops.add(self._detokenizer.finish(), may_stop=False)
        assert isinstance(tail, str)
        return tail + self._stops.finish()

    def add_prompt_logprobs(self, logprobs: list[PositionLogprobs]) -> None:
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.extend(logprobs)

    def take_prompt_logprobs(self) -> tuple[PositionLogprobs | None, ...] | None:
        taken, self._prompt_logprobs = self._prompt_logprobs, None
        return None if taken is None else tuple(taken)


class OutputProcessor:
    """Owns the text of every sequence from its arrival to its end. Called by the engine."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._transcripts: dict[str, _Transcript] = {}

    def add(self, sequence: Sequence) -> None:
        """Begin a sequence's text."""
        self._transcripts[sequence.request_id] = _Transcript(self._tokenizer, sequence)

    def process(
        self, sequence: Sequence, result: StepResult
    ) -> tuple[RequestOutput | None, str | None]:
        """Return the news of one step, if any, and the stop string that its text completed.

        The engine ends the sequence at a stop string. Every end is followed by one `close`.
        """
        transcript = self._transcripts[sequence.request_id]
        transcript.add_prompt_logprobs([self._render(raw) for raw in result.prompt_logprobs])
        if result.token_id is None:
            return None, None
        text, stop = self._new_text(transcript, sequence, result.token_id)
        output = RequestOutput(
            request_id=sequence.request_id,
            text=text,
            token_ids=(result.token_id,),
            logprobs=(self._render(result.logprobs),) if result.logprobs else None,
            prompt_logprobs=transcript.take_prompt_logprobs(),
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=len(sequence.output_token_ids),
        )
        return output, stop

    def close(self, sequence: Sequence, news: RequestOutput | None = None) -> RequestOutput:
        """Return a finished sequence's last output: `news`, held-back text, and why it ended."""
        transcript = self._transcripts.pop(sequence.request_id)
        last = news or RequestOutput(request_id=sequence.request_id)
        text, prompt_logprobs, embedding = last.text, last.prompt_logprobs, None
        if sequence.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            text += transcript.finish()
            prompt_logprobs = prompt_logprobs or transcript.take_prompt_logprobs()
            if sequence.request.embed and sequence.pooled is not None:
                embedding = embedding_bytes(sequence.pooled)
        return RequestOutput(
            request_id=sequence.request_id,
            text=text,
            token_ids=last.token_ids,
            logprobs=last.logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            error=sequence.error,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=len(sequence.output_token_ids),
            num_copied_tokens=sequence.num_copied_tokens,
            timings=sequence.timings,
            embedding=embedding,
        )

    def _new_text(
        self, transcript: _Transcript, sequence: Sequence, token_id: int
    ) -> tuple[str, str | None]:
        sampling = sequence.request.sampling
        # Sequences end with STOP before their text is known only by a stop token or a grammar.
        is_stop_token = (
            sequence.finish_reason is FinishReason.STOP and not sequence.completed_grammar
        )
        if is_stop_token and not sampling.include_stop_str_in_output:
            return "", None
        may_stop = len(sequence.output_token_ids) > sampling.min_tokens and not is_stop_token
        return transcript.add(token_id, may_stop=may_stop)

    def _render(self, raw: RawLogprobs) -> PositionLogprobs:
        return PositionLogprobs(
            chosen=self._token_logprob(raw.token_id, raw.logprob),
            top=tuple(map(self._token_logprob, raw.top_ids, raw.top_logprobs)),
        )

    def _token_logprob(self, token_id: int, logprob: float) -> TokenLogprob:
        data = self._tokenizer.token_bytes(token_id)
        return TokenLogprob(
            token_id=token_id,
            token=data.decode("utf-8", errors="replace"),
            token_bytes=data,
            logprob=max(logprob, LOGPROB_FLOOR),
        )
