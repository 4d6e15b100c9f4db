"""Requests of every kind, made from a seed."""

import random

from dijiang_runtime.request import Request, SamplingParams

NUM_TOKENS = 384


def make_request(
    request_id: str = "r",
    prompt: list[int] | tuple[int, ...] = (5, 6, 7),
    *,
    priority: int = 0,
    max_queue_seconds: float | None = None,
    **sampling: object,
) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
        arrival_time=0.0,
        priority=priority,
        max_queue_seconds=max_queue_seconds,
    )


def random_sampling(rng: random.Random) -> SamplingParams:
    """Parameters from the whole range, each used by some requests and not by others."""

    def sometimes(value: object, default: object) -> object:
        return value if rng.random() < 0.4 else default

    max_tokens = rng.randint(1, 24)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=sometimes(rng.randint(0, max_tokens), 0),  # type: ignore[arg-type]
        temperature=sometimes(0.0, rng.uniform(0.2, 2.0)),  # type: ignore[arg-type]
        top_p=sometimes(rng.uniform(0.05, 1.0), 1.0),  # type: ignore[arg-type]
        top_k=sometimes(rng.randint(1, 400), 0),  # type: ignore[arg-type]
        min_p=sometimes(rng.uniform(0.0, 0.5), 0.0),  # type: ignore[arg-type]
        frequency_penalty=sometimes(rng.uniform(-2, 2), 0.0),  # type: ignore[arg-type]
        presence_penalty=sometimes(rng.uniform(-2, 2), 0.0),  # type: ignore[arg-type]
        repetition_penalty=sometimes(rng.uniform(0.5, 2), 1.0),  # type: ignore[arg-type]
        logit_bias=sometimes(  # type: ignore[arg-type]
            {rng.randrange(NUM_TOKENS): rng.uniform(-5, 5) for _ in range(5)}, {}
        ),
        seed=rng.randint(-(2**63), 2**63 - 1),
        stop=sometimes((chr(rng.randint(97, 122)),), ()),  # type: ignore[arg-type]
        stop_token_ids=sometimes((rng.randrange(NUM_TOKENS),), ()),  # type: ignore[arg-type]
        logprobs=rng.choice((-1, 0, 5)),
        prompt_logprobs=rng.choice((-1, -1, 2)),
        allowed_token_ids=sometimes(  # type: ignore[arg-type]
            tuple(rng.sample(range(NUM_TOKENS), rng.choice((3, 50, 300)))), None
        ),
        bad_words=sometimes(  # type: ignore[arg-type]
            tuple(
                tuple(rng.randrange(30) for _ in range(rng.choice((1, 1, 2, 3))))
                for _ in range(rng.randint(1, 20))
            ),
            (),
        ),
    )


def random_requests(seed: int, num_requests: int, *, max_prompt_tokens: int = 200) -> list[Request]:
    rng = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, *([0] * num_requests)]
    return [
        Request(
            request_id=f"request-{i}",
            prompt_token_ids=tuple(
                rng.randrange(NUM_TOKENS)
                for _ in range(lengths[i] or rng.randint(1, max_prompt_tokens))
            ),
            sampling=random_sampling(rng),
            arrival_time=0.0,
        )
        for i in range(num_requests)
    ]
