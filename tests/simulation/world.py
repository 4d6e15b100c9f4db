"""One simulated run: random clients, faults, and the invariants, all from one seed.

    I1   slots are conserved
    I2   every accepted request ends exactly once
    I3   admission is by priority, and first come, first served within one
    I4   an answer equals that of the isolated run
    I5   nothing follows the last output of a request
    I6   a slot has one owner, and none is handed on while a step that uses it is in flight
    I8   counts are conserved: received = finished + failed + aborted + refused + lost to a death
    I9   the queue stays within its limits
    I10  when arrivals and faults stop, everything ends within bounded time
    I11  who may wait only so long for a slot waits no longer, and is given up for nothing else
    I12  a group's prompt is computed for one of its sequences at a time; the others take its state

I7 is about snapshots, which do not exist yet.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from dijiang_runtime.engine.engine import Engine
from dijiang_runtime.engine.messages import EngineInfo
from dijiang_runtime.engine.scheduler_output import ScheduledSequence, SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence
from dijiang_runtime.errors import EngineOverloadedError, InvalidRequestError
from dijiang_runtime.request import FinishReason, Request, RequestOutput, SamplingParams
from tests.simulation.isolated import expect, prompt_tail
from tests.simulation.model import (
    EOS,
    VOCAB_SIZE,
    EngineKilledError,
    Faults,
    SimulatedRunner,
    SimulatedTokenizer,
)

STOPS = ("END", "ab", "bca", "the", ".\n", "é", "…", "c")


class ViolationError(AssertionError):
    """An invariant does not hold."""


def check(ok: bool, invariant: str, message: str) -> None:
    if not ok:
        raise ViolationError(f"{invariant}: {message}")


@dataclass
class Client:
    """What one client has sent and received."""

    request: Request
    order: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    ended: FinishReason | None = None
    lost: bool = False
    aborted: bool = False
    """Aborted in mid-step: the step's end must be its end."""
    last: RequestOutput | None = None


@dataclass
class World:
    """A seed's engine and clients. `run` raises `ViolationError` or returns what was seen."""

    seed: int
    num_requests: int
    rng: random.Random = field(init=False)
    seen: Counter = field(default_factory=Counter)
    """The 'sometimes' counters: which rare situations this run went through."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        rng = self.rng
        self.now = 0.0
        self.num_slots = rng.choice((1, 2, 3, 8, 32))
        self.max_queued = rng.choice((1, 16, 64, 200))
        self.max_queued_tokens = rng.choice((50, 10_000, 100_000))
        self.priorities = rng.choice(((0,), (0, 1), (-5, 0, 5)))
        self.max_queue_seconds = rng.choice((None, 0.003, 0.05))
        self.num_before_step = 0
        self.max_batched_tokens = rng.choice((1, 64, 100, 512))
        stormy = rng.random() < 0.5
        self.faults = Faults(row=0.01, all_rows=0.005, death=0.003) if stormy else Faults()
        self.group_rate = rng.choice((0.0, 0.1, 0.4))
        self.forks: tuple[ScheduledSequence, ...] = ()
        self.abort_rate = rng.choice((0.0, 0.05, 0.3))
        self.clients: dict[str, Client] = {}
        self.open: dict[str, None] = {}
        """Ids of those who have no last output yet, in order of arrival."""
        self.num_received = 0
        self.num_refused = 0
        self._start_engine()

    def run(self) -> Counter:
        while self.num_received < self.num_requests:
            self._arrivals()
            if self.rng.random() < self.abort_rate:
                self._abort_someone("between steps")
            self._step()
        self.faults.row = self.faults.all_rows = self.faults.death = 0.0
        self._drain()
        self._check_conservation()
        return self.seen

    def _start_engine(self) -> None:
        self.runner = SimulatedRunner(self.rng, self.faults, self.num_slots)
        self.runner.in_step.append(self._during_step)
        info = EngineInfo(
            vocab_size=VOCAB_SIZE,
            max_model_len=400,
            max_logprobs=0,
            bos_token_id=None,
            eos_token_ids=(EOS,),
            num_slots=self.num_slots,
            state_bytes_per_sequence=16,
            state_bytes_total=16 * self.num_slots,
            num_parameters=0,
            num_layers=1,
            hidden_size=16,
            family="simulated",
            device="none",
            dtype="none",
            num_threads=1,
            max_queued_requests=self.max_queued,
            max_queued_tokens=self.max_queued_tokens,
            load_seconds=0.0,
            warmup_seconds=0.0,
        )
        self.engine = Engine(
            self.runner,
            SimulatedTokenizer(),  # type: ignore[arg-type]
            info,
            max_batched_tokens=self.max_batched_tokens,
            clock=lambda: self.now,
        )

    def _arrivals(self) -> None:
        burst = self.rng.choice((0, 0, 0, 1, 1, 2, 5, 12))
        for _ in range(min(burst, self.num_requests - self.num_received)):
            self._arrive()
        if self.rng.random() < self.group_rate:
            self._arrive_as_group(self.rng.choice((2, 3, 8)))

    def _arrive_as_group(self, size: int) -> None:
        """Several answers to one prompt: the same prompt, limits of their own."""
        first = self._random_request()
        group = f"{self.seed}-group-{self.num_received}"
        for _ in range(min(size, self.num_requests - self.num_received)):
            request = msgspec.structs.replace(
                self._random_request(),
                prompt_token_ids=first.prompt_token_ids,
                priority=first.priority,
                group=group,
            )
            self._arrive(request)

    def _arrive(self, request: Request | None = None) -> None:
        request = request or self._random_request()
        self.num_received += 1
        if self.open and self.rng.random() < 0.01:
            self._send_one_twice()
        try:
            self.engine.add_request(request)
        except EngineOverloadedError as exc:
            self.num_refused += 1
            self.seen["refused: queue full"] += 1
            check(exc.retry_after_seconds > 0, "I9", "a refusal does not say when to come back")
            check(
                self.engine.scheduler.slots.num_free <= len(self.engine.scheduler.waiting),
                "I9",
                "a request was refused while a slot was free for it",
            )
            return
        self.clients[request.request_id] = Client(request, order=self.num_received)
        self.open[request.request_id] = None

    def _send_one_twice(self) -> None:
        scheduler = self.engine.scheduler
        # In mid-step a client may not know yet that its request was given up: then the id is free.
        if alive := [i for i in self.open if i in scheduler.waiting or i in scheduler.running]:
            self._send_twice(self.clients[self.rng.choice(alive)].request)

    def _send_twice(self, request: Request) -> None:
        try:
            self.engine.add_request(request)
        except (InvalidRequestError, EngineOverloadedError):
            self.seen["duplicate id"] += 1
            return
        raise ViolationError("I2: a request was accepted twice")

    def _random_request(self) -> Request:
        rng = self.rng
        length = rng.choice((1, 2, 5, 20, 63, 64, 65, 130, 300)) if rng.random() < 0.3 else 6
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(length))
        # A prompt that ends inside a character is a story of its own (tests/engine).
        if prompt_tail(prompt):
            prompt = (*prompt, 1)
        max_tokens = rng.choice((1, 2, 3, 4, 8, 30))
        sampling = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice((0, 0, 0, 1, max_tokens)),
            temperature=0.0,
            stop=tuple(rng.sample(STOPS, rng.choice((0, 0, 0, 1, 3)))),
            stop_token_ids=tuple(rng.sample(range(VOCAB_SIZE), rng.choice((0, 0, 0, 2)))),
            include_stop_str_in_output=rng.random() < 0.2,
            ignore_eos=rng.random() < 0.3,
        )
        return Request(
            request_id=f"{self.seed}-{self.num_received}",
            prompt_token_ids=prompt,
            sampling=sampling,
            arrival_time=self.now,
            priority=rng.choice(self.priorities),
            max_queue_seconds=self.max_queue_seconds if rng.random() < 0.5 else None,
        )

    def _during_step(self, plan: SchedulerOutput) -> None:
        """Aborts that arrive while the model computes; the slots in use must not change hands."""
        slots = [item.slot for item in plan]
        check(len(slots) == len(set(slots)), "I6", "two sequences of a step share a slot")
        check(0 not in slots, "I6", "a sequence was given the scratch slot")
        for item in plan.prefills:
            end = item.sequence.num_computed_tokens + item.num_tokens
            check(item.completes_prompt or end % 64 == 0, "I4", "a cut off the chunk grid")
        self._check_groups(plan)
        self.seen["prompt split"] += any(not i.completes_prompt for i in plan.prefills)
        self.seen["mixed step"] += bool(plan.decodes and plan.prefills)
        if self.rng.random() < self.abort_rate:
            in_flight = [item.sequence.request_id for item in plan]
            self._abort(self.rng.choice(in_flight), "in mid-step")
            free = set(self.engine.scheduler.slots._free)
            check(not free & set(slots), "I6", "a slot was freed while a step was using it")
        if self.rng.random() < 0.1 and self.num_received < self.num_requests:
            self._arrive()

    def _check_groups(self, plan: SchedulerOutput) -> None:
        groups = [i.sequence.request.group for i in plan.prefills if i.sequence.request.group]
        check(len(groups) == len(set(groups)), "I12", "two of a group compute their prompt")
        for fork in plan.forks:
            source = fork.source
            check(source in plan.prefills, "I12", "a fork without a source")
            assert source is not None
            check(source.completes_prompt, "I12", "a fork of half a prompt")
            check(fork.sequence.num_computed_tokens == 0, "I12", "a fork of who has begun")
        forks = sorted(item.sequence.request_id for item in plan.forks)
        self.seen["forked"] += len(forks)
        followers = self.engine.scheduler._followers().keys()
        self.seen["follower waited for its leader"] += bool(followers - set(forks))
        first: dict[str | None, str] = {}
        for sequence in self.engine.scheduler.running.values():
            if sequence.is_prefilling:
                first.setdefault(sequence.request.group, sequence.request_id)
        check(not followers & set(first.values()), "I12", "they wait for nobody")
        waiting = self.engine.scheduler.waiting.values()
        late = {s.request.group for s in waiting if s.request.group}
        self.seen["group admitted in parts"] += any(
            f.sequence.request.group in late for f in plan.forks
        )
        self.forks = plan.forks

    def _abort_someone(self, when: str) -> None:
        running, waiting = self.engine.scheduler.running, self.engine.scheduler.waiting
        if candidates := [*running, *waiting, "nobody"]:
            request_id = self.rng.choice(candidates)
            kind = "waiting" if request_id in waiting else "running"
            self._abort(request_id, f"{when}, {kind}")

    def _abort(self, request_id: str, when: str) -> None:
        client = self.clients.get(request_id)
        if client is None or client.ended:
            check(self.engine.abort(request_id) is None, "I5", "an ended request was aborted")
            return
        output = self.engine.abort(request_id)
        self.seen[f"aborted {when}"] += 1
        if when == "in mid-step":
            client.aborted = True
            check(output is None, "I6", "a sequence in flight was ended")
            return
        check(output is not None, "I2", "an abort was not answered")
        assert output is not None
        self._deliver(output)

    def _step(self) -> None:
        self.now += 0.001
        self.num_before_step = self.num_received
        try:
            outputs = self.engine.step()
        except EngineKilledError:
            self._bury()
            return
        self.seen["fork deferred"] += sum(f.sequence.is_prefilling for f in self.forks)
        self.forks = ()
        for output in outputs:
            self._deliver(output)
        overdue = [i for i in self.open if self.clients[i].aborted]
        check(not overdue, "I2", f"aborted in the last step and still running: {overdue}")
        self._check_step()

    def _bury(self) -> None:
        """The engine died: its clients are told by the process around it, and a new one starts."""
        self.seen["engine death"] += 1
        for request_id in self.open:
            client = self.clients[request_id]
            client.ended, client.lost = FinishReason.ERROR, True
        self.open.clear()
        self._start_engine()

    def _deliver(self, output: RequestOutput) -> None:
        client = self.clients[output.request_id]
        check(client.ended is None, "I5", f"{output.request_id} got an output after its end")
        client.text += output.text
        client.token_ids += output.token_ids
        is_early = output.finish_reason in (FinishReason.ABORT, FinishReason.ERROR)
        is_exact = output.num_output_tokens == len(client.token_ids)
        check(is_exact or is_early, "I8", "usage does not count the tokens that were sent")
        if output.finish_reason is not None:
            client.ended, client.last = output.finish_reason, output
            del self.open[output.request_id]
            self._check_end(client)

    def _check_end(self, client: Client) -> None:
        request_id = client.request.request_id
        assert client.last is not None
        error = client.last.error
        if error is not None and error.kind == "QueueTimeoutError":
            self._check_expired(client)
            return
        if client.ended is FinishReason.ERROR:
            check(request_id in self.runner.failed, "I4", f"{request_id} failed without a fault")
            self.seen["failed row"] += 1
            return
        expected = expect(client.request)
        if client.ended is FinishReason.ABORT:
            whole = expected.token_ids
            check(client.token_ids == whole[: len(client.token_ids)], "I4", "aborted: wrong ids")
            check(expected.text.startswith(client.text), "I4", "aborted: wrong text")
            return
        answer = (client.token_ids, client.text, client.ended, client.last.stop_reason)
        wanted = (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
            expected.stop_reason,
        )
        check(answer == wanted, "I4", f"{request_id}: {answer} instead of {wanted}")
        check(request_id not in self.runner.failed, "I4", f"{request_id} survived its fault")
        self.seen[f"finished by {_kind(client)}"] += 1

    def _check_expired(self, client: Client) -> None:
        limit = client.request.max_queue_seconds
        assert client.last is not None and client.last.timings is not None
        check(limit is not None, "I11", "a request without a limit waited too long")
        assert limit is not None
        check(self.now - client.request.arrival_time >= limit, "I11", "it may wait longer")
        check(client.last.timings.scheduled == 0.0, "I11", "it had a slot, and was given up")
        check(client.token_ids == (), "I11", "it was answered, and given up")
        self.seen["waited too long"] += 1

    def _check_step(self) -> None:
        scheduler = self.engine.scheduler
        slots = [s.slot for s in scheduler.running.values()]
        free = scheduler.slots._free
        check(None not in slots, "I1", "a running sequence has no slot")
        check(len(slots) == len(set(slots)), "I6", "two sequences share a slot")
        everything = sorted([*slots, *free])
        check(everything == list(range(1, self.num_slots + 1)), "I1", f"slots: {everything}")
        check(all(s.slot is None for s in scheduler.waiting.values()), "I1", "a waiter has a slot")
        waiting, num_queued = set(scheduler.waiting), scheduler.waiting.num_queued
        check(not waiting & scheduler.running.keys(), "I2", "waits and runs")
        known = waiting | scheduler.running.keys()
        check(known == self.open.keys(), "I2", "the engine and the clients do not know the same")
        check(num_queued <= self.max_queued, "I9", "the queue is too long")
        self.seen["queue full"] += num_queued == self.max_queued
        self._check_order()

    def _check_order(self) -> None:
        """Whoever was admitted in this step was the first of those who waited."""
        scheduler = self.engine.scheduler
        waiting = [self._place(i) for i in scheduler.waiting]
        waited = [place for place in waiting if place[1] <= self.num_before_step]
        admitted = [self._place(i) for i, s in scheduler.running.items() if self._is_new(s)]
        if admitted and waited:
            check(max(admitted) < min(waited), "I3", "somebody was admitted out of turn")
            self.seen["overtook by priority"] += max(i for _, i in admitted) > min(
                i for _, i in waited
            )
        for request_id in scheduler.waiting:
            request = self.clients[request_id].request
            limit = request.max_queue_seconds
            is_late = limit is not None and self.now - request.arrival_time >= limit
            check(not is_late, "I11", "a request waits longer than it may")

    def _place(self, request_id: str) -> tuple[int, int]:
        client = self.clients[request_id]
        return client.request.priority, client.order

    def _is_new(self, sequence: Sequence) -> bool:
        return sequence.scheduled_time == self.now

    def _drain(self) -> None:
        """I10: with no more arrivals, every step finishes some of the work that is left."""
        open_clients = [self.clients[i] for i in self.open]
        # The oldest prompt moves by a chunk a step at least, and then its answer by a token.
        bound = 2 + sum(
            len(c.request.prompt_token_ids) // 64 + 1 + c.request.sampling.max_tokens
            for c in open_clients
        )
        for _ in range(bound):
            if not self.engine.has_work:
                break
            self._step()
        check(not self.engine.has_work, "I10", f"work is left after {bound} steps")
        check(self.engine.scheduler.slots.num_used == 0, "I1", "an idle engine holds slots")

    def _check_conservation(self) -> None:
        ended = Counter(
            "lost" if c.lost else str(c.ended) for c in self.clients.values() if c.ended
        )
        check(
            self.num_received == sum(ended.values()) + self.num_refused,
            "I8",
            f"{self.num_received} received, {dict(ended)} ended, {self.num_refused} refused",
        )


def _kind(client: Client) -> str:
    if client.ended is FinishReason.LENGTH:
        return "length"
    reason = client.last.stop_reason if client.last else None
    return "EOS" if reason is None else "stop string" if isinstance(reason, str) else "stop token"
