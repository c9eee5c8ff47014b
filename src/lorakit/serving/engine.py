"""The thread that runs steps: requests in, tokens out.

    submit ──► inbox ──► Scheduler.plan ──► Forward.run ──► choose ──► events ──► deliver
                              ▲   wanted
               ready ◄── loader thread (reads, checks and stages an adapter)

Everything but `submit`, `cancel` and `stop` happens in the engine's own thread, so that nothing here
needs a lock. An adapter that is not in its slots is read in another thread and copied between steps.

Longer than 300 lines: everything here is the state of one thread, which no other file may touch.
"""

import atexit
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.errors import InputError, LorakitError
from lorakit.execution.steps import Place
from lorakit.execution.waiting import team
from lorakit.kernels.slot_plan import SlotRun
from lorakit.serving import scheduler
from lorakit.serving.adjusting import Adjuster, NothingAllowedError
from lorakit.serving.answers import CompletionEvent, Deliver, Observer, Prompt, StoppingError
from lorakit.serving.bank import StagedAdapter
from lorakit.serving.forward import Forward
from lorakit.serving.pool import SlotPool
from lorakit.serving.sampling import Chosen, choose
from lorakit.serving.scheduler import QueueFullError, Scheduler, SequenceWork
from lorakit.serving.spec import EngineSpec
from lorakit.serving.text import TextStream
from lorakit.serving.thread import ComputeThread

_log = logging.getLogger("lorakit.serving")


@dataclass(eq=False)
class _Answer:
    """One answer, as the engine knows it."""

    prompt: Prompt
    sequence: scheduler.Sequence
    tag: Any
    text: TextStream
    generator: random.Random
    adjuster: Adjuster | None
    before: float
    answered: int = 0


class _StepError(Exception):
    """A forward pass failed."""


class Engine:
    """Runs requests on one base.

    Args:
        forward: the prepared base.
        tokenizer: its tokenizer.
        spec: limits.
        largest: cache positions of the longest sequence, as for `open_forward`.
        deliver: called in the engine's thread after every step; must not block.
        observer: called at each step, token and load.
        clock: seconds, monotonic.
        thread: in which steps are run: the one that loaded the base, where there is one.
    """

    def __init__(
        self,
        forward: Forward,
        tokenizer: Any,
        spec: EngineSpec,
        largest: int,
        deliver: Deliver,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        thread: ComputeThread | None = None,
    ) -> None:
        self.forward, self.tokenizer, self.spec = forward, tokenizer, spec
        self.deliver, self.clock = deliver, clock
        self.observer = observer or Observer()
        self.cache = forward.room.cache(largest)
        self.pool = SlotPool(spec.slots)
        self.scheduler = Scheduler(spec, self.cache, self.pool)
        self._answers: dict[scheduler.Sequence, _Answer] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._count, self._counted = 0, threading.Lock()
        self._loading: dict[str, Future[tuple[StagedAdapter, float]]] = {}
        # The loader computes alone: a second team would slow every step (thread.py). What it sets
        # for itself torch takes for every thread that begins to compute later.
        self._threads = torch.get_num_threads()
        self._loader = ThreadPoolExecutor(
            1, thread_name_prefix="lorakit-loader", initializer=lambda: torch.set_num_threads(1)
        )
        self._state, self._started = "running", False
        self._thread, self._run = thread or ComputeThread(), Future[None]()

    # --- from any thread

    def start(self) -> None:
        """Begin to run steps."""
        self._run = self._thread.begin(self._loop)
        self._started = True
        # Called before the thread is waited for: whoever came last goes first at exit.
        atexit.register(self._halt)

    def submit(self, prompts: Sequence[Prompt], tag: Any) -> Callable[[], None]:
        """Ask for answers; they come through `deliver` with `tag`.

        Args:
            prompts: answers of one request; those with equal ids and key share the prompt's work.
            tag: given back with every event.

        Returns:
            A function that ends them all, from any thread, at the next step.

        Raises:
            QueueFullError: too many are waiting; nothing was taken.
            StoppingError: `stop` was called.
        """
        now = self.clock()
        answers: list[_Answer] = []
        leaders: dict[tuple[str, tuple[int, ...]], scheduler.Sequence] = {}
        for prompt in prompts:
            alike = (prompt.key, tuple(prompt.ids))
            sequence = scheduler.Sequence(
                *(prompt.key, prompt.ids, prompt.most, now), unadapted=prompt.unadapted
            )
            sequence.leader = leaders.get(alike)
            leaders.setdefault(alike, sequence)
            answers.append(self._open(prompt, sequence, tag, now))
        with self._counted:
            if self._state != "running":
                raise StoppingError("the server is stopping")
            if self._count + len(prompts) > self.spec.max_queue + self.spec.max_running:
                raise QueueFullError(f"{self._count} answers are waiting or being written")
            self._count += len(prompts)

        def begin() -> None:
            self._answers |= {answer.sequence: answer for answer in answers}
            self.scheduler.waiting.extend(answer.sequence for answer in answers)

        def cancel() -> None:
            for answer in answers:
                self._end(answer)

        self._post(begin)
        return lambda: self._post(cancel)

    def _open(self, prompt: Prompt, sequence: scheduler.Sequence, tag: Any, now: float) -> _Answer:
        wish = prompt.sampling
        text = TextStream(
            *(self.tokenizer, prompt.stop),
            stop_shown=prompt.stop_shown,
            specials=prompt.specials,
            least=wish.min_tokens,
        )
        adjuster = Adjuster(wish, prompt.ids, prompt.ends) if wish.adjusts else None
        generator = wish.generator(prompt.choice)
        return _Answer(prompt, sequence, tag, text, generator, adjuster, before=now)

    @property
    def load(self) -> tuple[int, int]:
        """Answers that are waiting or being written, and how many there may be."""
        return self._count, self.spec.max_queue + self.spec.max_running

    @property
    def alive(self) -> bool:
        """Whether steps are run."""
        return self._started and not self._run.done()

    @property
    def failure(self) -> str | None:
        """Why the server has to end; a step that fails ends its own answers only."""
        return None

    @property
    def residents(self) -> int:
        """Adapters that are ready in their slots."""
        return len(self.pool.resident)

    def refuse(self) -> None:
        """Take no more requests; those taken go on."""
        with self._counted:
            if self._state == "running":
                self._state = "draining"

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those taken end for so long, then end the thread."""
        self.refuse()
        until = time.monotonic() + drain_seconds
        while self._count and self.alive and time.monotonic() < until:
            time.sleep(0.02)
        self._halt()
        if self._started:
            wait([self._run])
        self._thread.end()
        atexit.unregister(self._halt)
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _halt(self) -> None:
        """Tell the thread that the step it computes is the last."""
        self._state = "stopped"
        self._wake.set()

    def _post(self, what: Callable[[], None]) -> None:
        self._inbox.put(what)
        self._wake.set()

    # --- in the engine's thread

    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        while self._state != "stopped":
            self._wake.clear()
            if (threads := team(self._threads)) != torch.get_num_threads():
                torch.set_num_threads(threads)
            try:
                busy = self.step()
            except Exception:
                _log.exception("the engine failed between steps; all its answers are ended")
                why = "the server failed"
                self.deliver([self._fail(answer, why) for answer in list(self._answers.values())])
                busy = False
            if not busy:
                self._wake.wait(0.5)
        self.deliver(
            [
                (a.tag, CompletionEvent(a.prompt.choice, "", finish="error"))
                for a in self._answers.values()
            ]
        )

    def step(self) -> bool:
        """Take what came in and run one step; False where there was nothing to do."""
        while not self._inbox.empty():
            self._inbox.get()()
        began = self.clock()
        events = self._install()
        plan = self.scheduler.plan(began)
        self._fetch(plan.wanted)
        for sequence in plan.admitted:
            allocation = sequence.allocation
            assert allocation is not None
            if allocation.copy_from is not None and allocation.copy_from != allocation.block.start:
                self.forward.copy(allocation.copy_from, allocation.block.start, allocation.reused)
        self.forward.retain(self.cache.starts)
        if plan.work:
            events += self._compute_apart(plan.work)
            self.observer.step(self.clock() - began, sum(work.count for work in plan.work))
        waiting, running = len(self.scheduler.waiting), len(self.scheduler.running)
        self.observer.level(running, waiting, self.cache.busy)
        if events:
            self.deliver(events)
        return bool(plan.work or events)

    def _compute_apart(self, work: Sequence[SequenceWork]) -> list[tuple[Any, CompletionEvent]]:
        """Run a step; where it fails, run each of its sequences alone, and end those that fail so.

        Nothing is recorded before a forward pass has succeeded, so that it can be run again.
        """
        try:
            return self._compute(work)
        except _StepError as error:
            if len(work) > 1:
                _log.error("a step failed; its sequences are computed one by one", exc_info=error)
                return [event for each in work for event in self._compute_apart([each])]
            _log.error("a sequence failed; it is ended", exc_info=error)
            return [self._fail(self._answers[work[0].sequence], "the server failed at this step")]

    def _compute(self, work: Sequence[SequenceWork]) -> list[tuple[Any, CompletionEvent]]:
        """Run a step's tokens through the base, choose the next ones, and make an event for each.

        Raises:
            _StepError: the forward pass failed; nothing has changed.
        """
        ids: list[int] = []
        places: list[Place] = []
        keep: list[int] = []
        runs: list[SlotRun] = []
        order = sorted(work, key=_slot)
        for each in order:
            sequence, allocation = each.sequence, each.sequence.allocation
            assert allocation is not None
            ids += sequence.tokens[sequence.past : sequence.past + each.count]
            places.append(
                Place(allocation.block.start, allocation.block.size, sequence.past, each.count)
            )
            if each.last:
                keep.append(len(ids) - 1)
            if (resident := each.resident) is not None:
                rows = each.count
                if runs and runs[-1].slot == resident.slot:
                    rows += runs.pop().rows
                runs.append(SlotRun(resident.slot, resident.width, rows))
        try:
            logits = self.forward.run(ids, places, keep, runs)
        except Exception as error:
            raise _StepError(f"{type(error).__name__}: {error}") from error
        chosen = [self._answers[each.sequence] for each in order if each.last]
        for each in order:
            self.scheduler.advance(each)
        tokens = choose(
            logits,
            [a.prompt.sampling for a in chosen],
            [a.generator for a in chosen],
            {row: a.adjuster for row, a in enumerate(chosen) if a.adjuster is not None},
        )
        now = self.clock()
        events = []
        for answer, token in zip(chosen, tokens, strict=True):
            try:
                events.append(self._take(answer, token, now))
            except Exception as error:
                events.append(self._fail_by(answer, error))
        return events

    def _take(
        self, answer: _Answer, token: Chosen | Exception | None, now: float
    ) -> tuple[Any, CompletionEvent]:
        """One more token of an answer, or its end.

        Raises:
            Exception: what choosing the token raised, or what it leads to; it concerns this answer.
        """
        prompt, sequence, adjuster = answer.prompt, answer.sequence, answer.adjuster
        if token is None:
            return self._fail(answer, f"{prompt.name} gives logits that are not finite")
        if isinstance(token, NothingAllowedError) and adjuster is not None and adjuster.complete:
            # What its grammar asked for is written, and nothing may follow: no token says so.
            text = answer.text.finish()
            self._end(answer)
            event = CompletionEvent(prompt.choice, text, (), "stop", sequence.reused)
            return answer.tag, event
        if isinstance(token, Exception):
            raise token
        name, first = prompt.name, not answer.answered
        if first:
            self.observer.prompt(name, len(prompt.ids), sequence.reused)
        self.observer.token(name, now - answer.before, first=first)
        answer.before = now
        answer.answered += 1
        text, finish = "", None
        if token.id in prompt.ends:
            text = answer.text.feed(token.id) if prompt.stop_shown else ""
            text, finish = text + answer.text.finish(), "stop"
        else:
            if adjuster is not None:
                adjuster.take(token.id)
            sequence.tokens.append(token.id)
            text = answer.text.feed(token.id)
            if answer.text.stopped is not None:
                finish = "stop"
            elif answer.answered >= prompt.most:
                text, finish = text + answer.text.finish(), "length"
        if finish is not None:
            self._end(answer)
        return answer.tag, CompletionEvent(prompt.choice, text, (token,), finish, sequence.reused)

    def _fail_by(self, answer: _Answer, error: Exception) -> tuple[Any, CompletionEvent]:
        """End one answer by what it raised; a fault of the request's own is told."""
        if isinstance(error, InputError):
            self._end(answer)
            return answer.tag, CompletionEvent(answer.prompt.choice, str(error), finish="refused")
        _log.error("an answer failed; it is ended", exc_info=error)
        return self._fail(answer, "the server failed at this answer")

    def _fail(self, answer: _Answer, why: str) -> tuple[Any, CompletionEvent]:
        self._end(answer, sound=False)
        return answer.tag, CompletionEvent(answer.prompt.choice, why, finish="error")

    def _end(self, answer: _Answer, *, sound: bool = True) -> None:
        """Forget an answer; its cache positions are wiped unless its last logits showed them to be finite."""
        sequence = answer.sequence
        if sequence.over:
            return
        sound = sound and (answer.answered > 0)
        if not sound and sequence.allocation is not None:
            self.forward.wipe(sequence.allocation.block.start, sequence.allocation.block.size)
        self.scheduler.end(sequence, keep=sound)
        del self._answers[sequence]
        with self._counted:
            self._count -= 1

    def _fetch(self, wanted: Sequence[str]) -> None:
        """Have the loader read the first few adapters that requests wait for."""
        for key in wanted[:2]:
            if key not in self._loading:
                load = next(a.prompt.load for s, a in self._answers.items() if s.key == key)
                assert load is not None
                future = self._loading[key] = self._loader.submit(self._timed, load)
                future.add_done_callback(lambda _: self._wake.set())

    def _timed(self, load: Callable[[], StagedAdapter]) -> tuple[StagedAdapter, float]:
        """Read and stage an adapter, in the loader's thread; and how long it took."""
        began = self.clock()
        staged = load()
        return staged, self.clock() - began

    def _install(self) -> list[tuple[Any, CompletionEvent]]:
        """Copy what the loader has read into slots; end the answers whose adapter is none."""
        events: list[tuple[Any, CompletionEvent]] = []
        for key, future in list(self._loading.items()):
            if not future.done():
                continue
            answers = [a for s, a in self._answers.items() if s.key == key]
            error = future.exception()
            if error is not None or not answers:
                del self._loading[key]
                why = (
                    str(error) if isinstance(error, LorakitError) else "its adapter cannot be read"
                )
                if error is not None and not isinstance(error, LorakitError):
                    _log.error("loading an adapter failed", exc_info=error)
                events += [self._fail(answer, why) for answer in answers]
                continue
            staged, reading = future.result()
            began = self.clock()
            resident = self.pool.place(key, staged.width)
            if resident is None:  # all slots are in use: at a later step
                continue
            del self._loading[key]
            try:
                self.forward.bank.install(resident.slot, staged)
            except Exception as failure:
                _log.error("installing an adapter failed", exc_info=failure)
                self.pool.drop(key)
                events += [self._fail(a, "its adapter cannot be installed") for a in answers]
                continue
            self.observer.loaded(reading, self.clock() - began)
        return events


def _slot(work: SequenceWork) -> int:
    """Sorts a step's sequences by slot, the base's last."""
    resident = work.resident
    return resident.slot if resident is not None else 1 << 30
