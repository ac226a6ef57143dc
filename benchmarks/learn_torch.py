"""One process, one peer learning: started by `benchmarks.accuracy` in the environment that has the peers."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from benchmarks import learning, measure
from benchmarks.cases import CLASSES
from benchmarks.torch_kits import KITS, versions
from benchmarks.torch_nets import Net, output
from tfspike.variants import VARIANTS


def main() -> None:
    """Builds the network and trains it."""
    given = measure.order()
    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    _, height, _, channels = np.load(given["data"])["x"].shape
    kit, deep = KITS[given["library"]](), given["deep"]
    net = Net(VARIANTS[given["net"]], channels, height, CLASSES, kit, deep, given["shortcut"])
    net = net.to(memory_format=torch.channels_last)
    if deep:
        rate = learning.DEEP_RATE
        weights = [p for p in net.parameters() if p.dim() > 1]
        rest = [p for p in net.parameters() if p.dim() == 1]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [{"params": weights, "weight_decay": learning.DEEP_DECAY}, {"params": rest, "weight_decay": 0.0}], lr=rate)
    else:
        rule, rate = learning.optimizer_of(given["library"])
        optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule](net.parameters(), lr=rate)
    narrow = given["precision"] == "bfloat16"

    def precision() -> contextlib.AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext()

    def images(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def train(x: np.ndarray, y: np.ndarray, share: float) -> None:
        net.train()
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        with precision():
            out = output(net, images(x), given["timesteps"])
        target = torch.from_numpy(y)
        if deep:
            loss = torch.nn.functional.cross_entropy(out, target)
        else:
            loss = ((out - torch.nn.functional.one_hot(target, CLASSES)) ** 2).sum(1).mean()
        loss.backward()
        optimizer.step()

    def predict(x: np.ndarray) -> np.ndarray:
        net.eval()
        with torch.inference_mode(), precision():
            return output(net, images(x), given["timesteps"]).argmax(1).numpy()

    learning.learn(given, train, predict, versions(given["library"]))


if __name__ == "__main__":
    main()
