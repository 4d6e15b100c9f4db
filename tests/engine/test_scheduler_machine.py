"""Whatever happens in whatever order, the scheduler keeps its promises."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from dijiang_runtime.engine.admission import QueueLimits
from dijiang_runtime.engine.scheduler import Scheduler
from dijiang_runtime.engine.scheduler_output import SchedulerOutput
from dijiang_runtime.engine.sequence import Sequence, StepResult
from dijiang_runtime.errors import EngineOverloadedError
from dijiang_runtime.request import FinishReason, RequestError
from tests.engine.requests import make_request

NUM_SLOTS = 3
LIMITS = QueueLimits(max_requests=4, max_tokens=500)
ERROR = RequestError("NumericalError", "")


class SchedulerMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(
            num_slots=NUM_SLOTS,
            max_batched_tokens=100,
            limits=LIMITS,
            eos_token_ids=frozenset({0}),
        )
        self.plan: SchedulerOutput | None = None
        self.accepted: list[Sequence] = []
        self.aborted: set[str] = set()
        self.steps_since_abort: dict[str, int] = {}

    @rule(
        target=requests,
        num_prompt_tokens=st.integers(1, 300),
        max_tokens=st.integers(1, 5),
        priority=st.integers(-1, 1),
    )
    def add(self, num_prompt_tokens: int, max_tokens: int, priority: int) -> str:
        request_id = f"request-{len(self.accepted)}-{self.scheduler.waiting.num_queued}"
        prompt = [5] * num_prompt_tokens
        request = make_request(request_id, prompt, max_tokens=max_tokens, priority=priority)
        sequence = Sequence(request, seed=0)
        if self.scheduler.knows(request_id):
            return request_id
        try:
            self.scheduler.add(sequence)
            self.accepted.append(sequence)
        except EngineOverloadedError as refusal:
            assert 1.0 <= refusal.retry_after_seconds <= 60.0
            assert self.scheduler.slots.num_free == 0 or self.scheduler.waiting
        return request_id

    @rule(request_id=requests)
    def abort(self, request_id: str) -> None:
        if self.scheduler.abort(request_id, now=0.0) is not None:
            self.aborted.add(request_id)
            self.steps_since_abort[request_id] = 0

    @precondition(lambda self: self.plan is None)
    @rule()
    def schedule(self) -> None:
        before = list(self.scheduler.waiting.values())
        plan = self.scheduler.schedule(now=0.0)
        admitted = [s for s in self.scheduler.running.values() if s in before]
        before.sort(key=lambda s: s.request.priority)
        assert admitted == before[: len(admitted)]
        if plan.is_empty:
            assert not self.scheduler.running
            return
        self.plan = plan
        decoding = [s for s in self.scheduler.running.values() if not s.is_prefilling]
        assert [item.sequence for item in plan.decodes] == decoding
        prompts = [s for s in self.scheduler.running.values() if s.is_prefilling]
        assert not prompts or plan.prefills[0].sequence is prompts[0]
        for item in plan.prefills:
            end = item.sequence.num_computed_tokens + item.num_tokens
            assert end % 64 == 0 or end == item.sequence.num_prompt_tokens

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        assert self.plan is not None
        results = []
        for item in self.plan:
            if data.draw(st.integers(0, 9)) == 0:
                results.append(StepResult(error=ERROR))
            else:
                token_id = data.draw(st.sampled_from([0, 1, 2, 3]))
                results.append(StepResult(token_id if item.completes_prompt else None))
        self.scheduler.update(self.plan, results, now=0.0)
        self.plan = None
        for request_id in self.aborted:
            self.steps_since_abort[request_id] += 1

    @invariant()
    def slots_are_conserved_and_owned_once(self) -> None:
        slots = [s.slot for s in self.scheduler.running.values()]
        assert None not in slots
        assert len(set(slots)) == len(slots) == self.scheduler.slots.num_used
        assert all(1 <= slot <= NUM_SLOTS for slot in slots if slot is not None)
        if self.plan is not None:
            in_flight = [item.slot for item in self.plan]
            assert len(set(in_flight)) == len(in_flight)

    @invariant()
    def admission_is_in_order_of_arrival_within_a_priority(self) -> None:
        known = [*self.scheduler.running.values(), *self.scheduler.waiting.values()]
        for priority in (-1, 0, 1):
            accepted = [s for s in self.accepted if s.request.priority == priority]
            live = [s for s in accepted if not s.is_finished]
            assert live == [s for s in known if s.request.priority == priority]

    @invariant()
    def the_queue_is_bounded(self) -> None:
        waiting = sorted(self.scheduler.waiting.values(), key=lambda s: s.request.priority)
        lengths = [s.num_prompt_tokens for s in waiting]
        assert LIMITS.fits(lengths[self.scheduler.slots.num_free :])

    @invariant()
    def an_aborted_sequence_is_gone_when_its_step_is_over(self) -> None:
        for request_id, num_steps in self.steps_since_abort.items():
            assert num_steps == 0 or not self.scheduler.knows(request_id)

    @invariant()
    def finished_sequences_hold_nothing(self) -> None:
        for sequence in self.accepted:
            assert sequence.is_finished == (sequence.finish_reason is not None)
            assert not (sequence.is_finished and sequence.slot is not None)
            if sequence.finish_reason is FinishReason.LENGTH:
                assert len(sequence.output_token_ids) == sequence.request.sampling.max_tokens

    def teardown(self) -> None:
        """When requests stop coming, everything ends."""
        for _ in range(1000):
            if self.plan is not None:
                results = [StepResult(1 if i.completes_prompt else None) for i in self.plan]
                self.scheduler.update(self.plan, results, now=0.0)
            plan = self.scheduler.schedule(now=0.0)
            self.plan = None if plan.is_empty else plan
            if self.plan is None:
                break
        assert not self.scheduler.has_work
        assert self.scheduler.slots.num_free == NUM_SLOTS
        assert all(s.is_finished for s in self.accepted)


SchedulerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
