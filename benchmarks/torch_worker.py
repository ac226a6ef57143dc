"""One process, one peer, one case: started by `benchmarks.run` in the environment that has PyTorch and the peers."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import CLASSES
from benchmarks.torch_kits import KITS, versions
from benchmarks.torch_nets import Net, output
from tfspike.variants import VARIANTS

BARE_MB = measure.memory_mb("VmRSS")  # kits import their library when they are made, so this is PyTorch alone


def main() -> None:
    """Builds the network and reports its step."""
    given = measure.order()
    device = given.get("device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU here.", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    images, labels = measure.images(given["net"], given["batch"])
    begin = time.perf_counter()
    x, target = torch.from_numpy(images).permute(0, 3, 1, 2).to(device), torch.from_numpy(labels).to(device)
    kit = KITS[given["library"]]()
    net = Net(VARIANTS[given["net"]], x.shape[1], x.shape[2], CLASSES, kit).to(device)
    if given.get("channels_last", True):  # measured: faster for every peer, or no slower (README.md)
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    else:
        x = x.contiguous()
    optimizer = torch.optim.SGD(net.parameters(), lr=measure.LEARNING_RATE * kit.weight_scale ** 2)
    narrow = given["precision"] == "bfloat16"
    steps = given["timesteps"]

    def precision() -> contextlib.AbstractContextManager:
        return torch.autocast(device, torch.bfloat16) if narrow else contextlib.nullcontext()

    def train() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            out = output(net, x, steps)
        loss = ((out - target) ** 2).sum(1).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def infer() -> Tensor:
        with torch.inference_mode(), precision():
            return output(net, x, steps).argmax(1)

    def rates() -> list[float]:
        net.watched = [[] for _ in net.neurons]
        infer()
        return [torch.stack(seen).mean().item() for seen in net.watched]

    step = train if given["mode"] == "train" else infer
    step, where = _on_card(step, given["library"]) if device == "cuda" else (step, {"bare_mb": BARE_MB})
    build = time.perf_counter() - begin
    measure.report(given, build_seconds=build, step=lambda: step().tolist(), rates=rates,
                   versions=versions(given["library"]), **where)


def _on_card(step: Callable[[], Tensor], library: str) -> tuple[Callable[[], Tensor], dict[str, Any]]:
    """The step as a GPU takes it, and what `measure.report` is told of the card."""
    torch.set_float32_matmul_precision("high")  # TF32, as XLA has it and as PyTorch's convolutions have it anyway
    more = {"card": torch.cuda.get_device_name()}
    if library.endswith("-compiled"):
        step, more["cuda_graph"] = _replayed(step)
    return step, {"bare_mb": 0.0, "more": more, "peak": lambda: torch.cuda.max_memory_allocated() / 2**20}


def _replayed(step: Callable[[], Tensor]) -> tuple[Callable[[], Tensor], str]:
    """A step as one CUDA graph, and "yes"; or as it is, and why CUDA could not record it."""
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is compiled or chosen at first calls is no part of the graph
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return step, str(error).splitlines()[0]

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay, "yes"


if __name__ == "__main__":
    main()
