"""One process, one peer, one case: started by `benchmarks.run` in the environment that has PyTorch and the peers."""

from __future__ import annotations

import contextlib
import time

import torch

from benchmarks import measure
from benchmarks.cases import CLASSES
from benchmarks.torch_kits import KITS, versions
from benchmarks.torch_nets import Net, output
from tfspike.variants import VARIANTS

BARE_MB = measure.memory_mb("VmRSS")  # kits import their library when they are made, so this is PyTorch alone


def main() -> None:
    """Builds the network and reports its step."""
    given = measure.order()
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    images, labels = measure.images(given["net"], given["batch"])
    begin = time.perf_counter()
    x, target = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    kit = KITS[given["library"]]()
    net = Net(VARIANTS[given["net"]], x.shape[1], x.shape[2], CLASSES, kit)
    if given.get("channels_last", True):  # measured: faster for every peer, or no slower (README.md)
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    else:
        x = x.contiguous()
    optimizer = torch.optim.SGD(net.parameters(), lr=measure.LEARNING_RATE * kit.weight_scale ** 2)
    narrow = given["precision"] == "bfloat16"
    steps = given["timesteps"]

    def precision() -> contextlib.AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext()

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        with precision():
            out = output(net, x, steps)
        loss = ((out - target) ** 2).sum(1).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    def infer() -> list:
        with torch.inference_mode(), precision():
            return output(net, x, steps).argmax(1).tolist()

    def rates() -> list[float]:
        net.watched = [[] for _ in net.neurons]
        infer()
        return [torch.stack(seen).mean().item() for seen in net.watched]

    build = time.perf_counter() - begin
    measure.report(given, BARE_MB, build, train if given["mode"] == "train" else infer, rates,
                   versions(given["library"]))


if __name__ == "__main__":
    main()
