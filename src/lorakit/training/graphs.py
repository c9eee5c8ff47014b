"""Forward, loss and backward of a batch as one CUDA graph, for models so small that launching costs more than
computing.

A step of the built-in model is thousands of kernels, each of which Python has to launch. A graph launches
all of them at once, but computes on the memory and in the shapes that it was captured with. So batches are
filled up to few shapes (graph_shapes.py), and what a graph reads and writes is fixed: tokens, places, bounds of the sequences
and labels are copied into buffers, gradients are added to those that the optimizer clears in their place.

A shape is captured when it comes for the second time, and used once its loss and gradients were those of the
step without it, and it was faster. What cannot be captured or is wrong is left, with one line. Parameters and
gradients that are replaced, and modules that are exchanged, are seen, and everything is captured anew.
`LORAKIT_CUDA_GRAPHS=0` leaves graphs out.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.data.batches import Batch
from lorakit.execution.runnable import Packed
from lorakit.lora.acting import acting_on
from lorakit.models.dimensions import block_count
from lorakit.training.graph_shapes import GraphShape, StaticBatch
from lorakit.training.loss import CausalLoss, Loss, head_loss
from lorakit.training.optimizer import rows_of

_log = logging.getLogger("lorakit.training")

Gradients = Callable[[Batch], tuple[float, float]]
"""Add a batch's gradients to those of the parameters: (nats summed, supervised tokens)."""


class Recorder(Protocol):
    """What captures, on the device that it is for."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What repeats `run` on the same memory; `run` itself has no effect here.

        Raises:
            RuntimeError: something in it cannot be captured.
        """

    def seconds(self, run: Callable[[], None]) -> float:
        """How long the device takes for it."""

    def has_room(self) -> bool:
        """Whether the device has memory for one more graph."""


class StepGraphs:
    """Gradients of batches by graphs where they help, by `loss` as it is where not.

    Args:
        loss: of the model.
        recorder: captures.
        most: graphs that are held at once.
        after: times that a shape comes before it is captured.
        gain: times that a graph has to be as fast as the step without it.
    """

    def __init__(
        self,
        loss: CausalLoss,
        recorder: Recorder,
        *,
        most: int = 8,
        after: int = 2,
        gain: float = 1.1,
    ) -> None:
        self._loss, self._recorder = loss, recorder
        self._most, self._after, self._gain = most, after, gain
        self._seen: Counter[GraphShape] = Counter()
        self._graphs: dict[GraphShape, tuple[StaticBatch, Callable[[], None]]] = {}
        self._too_large: int | None = None
        self._bound: list[tuple[dict[str, Any], str, Any, int]] | None = None
        self.left: str | None = None

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Add the batch's gradients; nats summed, and supervised tokens."""
        self._loss.runnable.prepare(max(batch.lengths_S))
        plain = batch.token_count and batch.factor_T is None
        if self.left is not None or not plain or not self._captures():
            return plain_gradients(self._loss, batch)
        if not self._unchanged():
            self._graphs.clear()
            self._bound = _bindings(self._loss.runnable.model)
        shape = GraphShape.of(batch.lengths_S, batch.token_count)
        if shape in self._graphs:
            static, replay = self._graphs[shape]
            static.fill(batch)
            replay()
            return float(static.nats), batch.token_count
        self._seen[shape] += 1
        wanted = self._seen[shape] >= self._after and len(self._graphs) < self._most
        large = self._too_large is not None and shape.tokens >= self._too_large
        if not wanted or large or not self._recorder.has_room():
            return plain_gradients(self._loss, batch)
        return self._captured(batch, shape)

    def _captures(self) -> bool:
        """Whether nothing but our own kernels runs between the embedding and the loss."""
        runnable = self._loss.runnable
        return (
            not self._loss.recompute
            and runnable.packs
            and not runnable.by_sequence
            and len(runnable.fused_blocks) == block_count(runnable.model.config)
            and runnable.head is not None
            # Their gradients are no parts of the optimizer's buffer, and go after each step.
            and all(rows_of(p) is None for p in runnable.model.parameters())
            and acting_on(runnable.model) is None  # a graph knows no tokens
        )

    def _unchanged(self) -> bool:
        """Whether every tensor is where it was: a graph knows addresses alone."""
        return self._bound is not None and all(
            home.get(name) is value and _address(value) == address
            for home, name, value, address in self._bound
        )

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self._loss.runnable.model.parameters() if p.grad is not None]

    def _captured(self, batch: Batch, shape: GraphShape) -> tuple[float, float]:
        """The batch by the plain way, and a graph of its shape if that gives the same, and faster."""
        parameters = self._trained()
        before = [_grad(p).clone() for p in parameters]
        answer: list[tuple[float, float]] = []
        slow = self._recorder.seconds(lambda: answer.append(plain_gradients(self._loss, batch)))
        after = [_grad(p).clone() for p in parameters]

        def back_to(gradients: list[Tensor]) -> None:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                _grad(parameter).copy_(gradient)

        static = StaticBatch(shape, batch.ids_T.device)
        static.fill(batch)
        try:
            # Once as it is: what is compiled for these shapes must not be compiled while it is captured.
            back_to(before)
            self._run(static, parameters)
            replay = self._recorder.record(lambda: self._run(static, parameters))
            back_to(before)
            static.nats.zero_()
            replay()
            apart = self._apart(parameters, before, after, float(static.nats), answer[0][0])
            fast = self._recorder.seconds(replay)
        except (RuntimeError, TypeError, ValueError) as error:
            self._leave(f"a step cannot be captured: {(str(error).splitlines() or ['?'])[0]}")
            return answer[0]
        finally:
            back_to(after)
        if not apart <= _tolerance(self._loss.runnable.model.dtype):
            self._leave(f"a captured step's loss or gradients differ by {apart:.1e}")
        elif slow < self._gain * fast:
            self._too_large = shape.tokens
            _log.info("steps of %d tokens and more are not captured: no faster", shape.tokens)
        else:
            self._graphs[shape] = static, replay
            times = 1e3 * fast, 1e3 * slow
            _log.info("steps of %d tokens are captured: %.1f ms, not %.1f", shape.tokens, *times)
        return answer[0]

    def _run(self, static: StaticBatch, parameters: Sequence[nn.Parameter]) -> None:
        """Add a static batch's gradients. Not by `backward`: that has streams of its own."""
        runnable = self._loss.runnable
        rows = Packed(static.ids_T, static.positions_T, static.where.lengths)
        hidden_TD = runnable.hidden(rows, training=True, where=static.where)
        head = runnable.head
        assert head is not None
        nats = head_loss(head, hidden_TD.index_select(0, static.predict_L), static.labels_L)
        gradients = torch.autograd.grad(nats, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                _grad(parameter).add_(gradient)
        static.nats.copy_(nats.detach())

    def _apart(
        self,
        parameters: Sequence[nn.Parameter],
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        nats: float,
        expected: float,
    ) -> float:
        """The larger of two differences, of the loss and of all gradients, as shares of them."""
        off = size = 0.0
        for parameter, old, new in zip(parameters, before, after, strict=True):
            off += float((_grad(parameter) - new).double().square().sum())
            size += float((new - old).double().square().sum())
        of_gradients = (off / size) ** 0.5 if size else float(off > 0)
        return max(of_gradients, abs(nats - expected) / max(abs(expected), 1e-6))

    def _leave(self, why: str) -> None:
        self.left = why
        self._graphs.clear()
        _log.warning("CUDA graphs are not used: %s", why)


def plain_gradients(loss: Loss, batch: Batch) -> tuple[float, float]:
    """Add a batch's gradients by autograd; nats summed, and supervised tokens."""
    nats, tokens = loss(batch, training=True)
    nats.backward()
    return float(nats.detach()), tokens


def gradients_of(loss: Loss, device: torch.device) -> Gradients:
    """How a loop gets its gradients: by graphs for a causal language model on a CUDA device."""
    if (
        isinstance(loss, CausalLoss)
        and loss.kind.is_plain
        and device.type == "cuda"
        and os.environ.get("LORAKIT_CUDA_GRAPHS") != "0"
        and os.environ.get("LORAKIT_KERNELS") != "plain"
    ):
        return StepGraphs(loss, CudaRecorder(device))
    return lambda batch: plain_gradients(loss, batch)


class CudaRecorder:
    """Captures on a CUDA device; all graphs share one pool, since no two run at once and none keeps anything
    in it from one replay to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """As `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool):
            run()
        return graph.replay

    def seconds(self, run: Callable[[], None]) -> float:
        """As `Recorder.seconds`."""
        torch.cuda.synchronize(self._device)
        began = time.perf_counter()
        run()
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - began

    def has_room(self) -> bool:
        """Whether as much memory is free as was ever taken by what is not kept."""
        free, _ = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_allocated(self._device)
        return free > torch.cuda.max_memory_allocated(self._device) - kept


def _bindings(model: nn.Module) -> list[tuple[dict[str, Any], str, Any, int]]:
    """Where each module, tensor and gradient of a model is held: (home, name, itself, its address)."""
    found: list[tuple[dict[str, Any], str, Any, int]] = []
    for module in model.modules():
        for home in (module._modules, module._parameters, module._buffers):
            for name, value in home.items():
                found.append((home, name, value, _address(value)))
    return found


def _address(value: Any) -> int:
    """Of a tensor and of its gradient; a module has none of its own."""
    if not isinstance(value, Tensor):
        return 0
    if not value.is_leaf or value.grad is None:
        return value.data_ptr()
    return hash((value.data_ptr(), value.grad.data_ptr()))


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _tolerance(dtype: torch.dtype) -> float:
    """How far two right ways to compute a step may differ: another order of sums alone."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 3e-2
