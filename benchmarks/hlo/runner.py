"""Runs a program of `benchmarks.hlo.export`: checks what it computes, then times it. NumPy and JAX, no TensorFlow.

    python benchmarks/hlo/runner.py benchmarks/hlo/programs/lenet-T50-B64-train-event-float32.json

This file needs no other of the repository. A program is two files: NAME.hlo.gz, the HLO of XLA, whose weights and
inputs are arguments, and NAME.json, which says how its arguments are made, which results are the next step's arguments,
and what TensorFlow computed from the same arguments.

The way into XLA is JAX's own client, `jax.extend.backend.get_backend()`: the public name that finds the plug-in of a
GPU, too, where jaxlib alone knows CPUs only. What else is needed of `jax.extend` is there from JAX 0.7 on. `jax.export`
reads what JAX wrote, and nothing else. HLO is what is kept, because TensorFlow writes StableHLO in a form that only
versions of the same time read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

UNUSABLE = 2  # exit code: nothing of this kind can run here
WARM_UP = 3  # steps before the timed ones
TRACED = 3  # steps that the profiler looks at, after the timed ones
_BITS = 127  # weights are whole multiples of a power of 2, so that sums of them are exact in whatever order
_WIDEST = 4.0  # standard deviations

# How far a number may be from TensorFlow's, relative to it. Spikes are equal but where rounding of the leak decides
# one; a GPU multiplies float32 with 10 bits (TF32), which gradients show.
TOLERANCES = {"loss": 0.01, "rate": 0.01, "output": 0.02, "grad_norm": 0.05, "change": 0.05}


# ---- arguments and numbers, which export.py makes too -------------------------------------------------------------


def value(argument: dict[str, Any], number: int) -> np.ndarray:
    """An argument of a program, always the same.

    Args:
      argument: `{"shape", "dtype", "kind"}`: "pixels" are uniform in [-1, 1], "labels" below "classes", "weights"
        normal with standard deviation "std", "constant" all "value".
      number: of the argument, which is its seed.
    """
    shape, kind = tuple(argument["shape"]), argument["kind"]
    random = np.random.RandomState(number)  # whose numbers stay the same in every version of NumPy
    if kind == "pixels":
        found = random.uniform(-1.0, 1.0, shape)
    elif kind == "labels":
        found = random.randint(0, argument["classes"], shape)
    elif kind == "weights":
        grain = 2.0 ** math.ceil(math.log2(_WIDEST * argument["std"] / _BITS))
        found = np.rint(np.clip(random.standard_normal(shape), -_WIDEST, _WIDEST) * argument["std"] / grain) * grain
    else:
        found = np.full(shape, argument["value"])
    return found.astype(argument["dtype"])


def numbers(program: dict[str, Any], arguments: list[np.ndarray], results: dict[int, np.ndarray]) -> dict[str, float]:
    """What is compared with TensorFlow: loss, firing rates, norms of gradients and of every update; or outputs."""
    first = np.asarray(results[0], np.float64)
    if program["mode"] == "inference":
        return {"output/size": float(np.sqrt(np.mean(first**2))),
                "output/sum": float(np.sum(first * np.cos(np.arange(first.size)).reshape(first.shape)))}
    found = {name: float(number) for name, number in zip(program["names"], first)
             if name.partition("/")[0] in TOLERANCES}
    for result, argument in program["updates"]:
        if program["arguments"][argument]["kind"] == "weights":
            change = np.asarray(results[result], np.float64) - arguments[argument]
            found[f"change/{program['arguments'][argument]['name']}"] = float(np.linalg.norm(change))
    return found


def differences(found: dict[str, float], expected: dict[str, float]) -> dict[str, float]:
    """How far each number is from TensorFlow's, relative to the larger of the two; not a number counts as infinite."""
    relative = {name: abs(found[name] - of_tensorflow) / max(abs(found[name]), abs(of_tensorflow), 1e-30)
                for name, of_tensorflow in expected.items()}
    return {name: math.inf if math.isnan(one) else one for name, one in relative.items()}


# ---- running --------------------------------------------------------------------------------------------------------


class Unusable(Exception):
    """This machine cannot run the program, in a sentence."""


def connect(platform: str) -> Any:
    """JAX's client of a platform, "cpu" or "gpu".

    Raises:
      Unusable: JAX is missing or too old, or sees no such device.
    """
    try:
        import jax
        import jax.extend.backend
        import jax.extend.mlir
    except ImportError as error:
        raise Unusable(f"The runner needs JAX, which is not installed here ({error}); pip install jax") from None
    if not hasattr(jax.extend.mlir, "hlo_to_stablehlo"):
        raise Unusable(f"The runner needs JAX 0.7 or later, which reads HLO; here is {jax.__version__}.")
    jax.config.update("jax_enable_x64", True)  # a step counter is int64
    try:
        return jax.extend.backend.get_backend(platform)
    except RuntimeError as error:
        raise Unusable(f"JAX sees no {platform} here; --platform=cpu runs on the CPU. ({str(error).splitlines()[0]})"
                       ) from None


def compiled(client: Any, hlo: bytes) -> Any:
    """The executable of a serialised HLO module, on the first device."""
    from jax.extend.backend import get_compile_options
    from jax.extend.mlir import hlo_to_stablehlo

    options = get_compile_options(num_replicas=1, num_partitions=1)
    return client.compile_and_load(hlo_to_stablehlo(hlo), client.local_devices()[:1], options)


def run(program: dict[str, Any], hlo: bytes, platform: str, steps: int) -> dict[str, Any]:
    """Checks and times a program.

    Returns:
      "status" ("ok", or "wrong" where a number is not TensorFlow's), "card", "seconds", "low" and "high" (median and
      range of the timed steps, each waited for), "images_per_s", "peak_mb" (arguments, results and buffers of the step
      together), "compile_s", "worst" (the largest difference) and "differences", and on a GPU "kernels" and "busy_s"
      of one step, as its profiler saw them.
    """
    client = connect(platform)
    import jax

    device = client.local_devices()[0]
    arguments = [value(argument, number) for number, argument in enumerate(program["arguments"])]
    begin = time.perf_counter()
    executable = compiled(client, hlo)
    compile_s = time.perf_counter() - begin

    def given() -> list[Any]:
        """The arguments on the device: a step takes those away that it updates."""
        return [jax.device_put(argument, device) for argument in arguments]

    results = {i: np.asarray(result) for i, result in enumerate(executable.execute(given()))}
    apart = differences(numbers(program, arguments, results), program["expected"])
    wrong = sorted(name for name, one in apart.items() if one > TOLERANCES[name.partition("/")[0]])

    state = given()
    rate = next((i for i, one in enumerate(program["arguments"]) if one["name"].endswith("learning_rate")), None)
    if rate is not None:  # the activity stays that of the first weights, however many steps are taken
        state[rate] = jax.device_put(np.zeros_like(arguments[rate]), device)

    def step() -> None:
        found = executable.execute(state)
        for result, argument in program["updates"]:
            state[argument] = found[result]
        for result in found:
            result.block_until_ready()

    for _ in range(WARM_UP):
        step()
    times = [_timed(step) for _ in range(steps)]
    seconds = statistics.median(times)
    memory = executable.get_compiled_memory_stats()
    peak = (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes)
    return {"status": "wrong" if wrong else "ok", "wrong": wrong, "card": device.device_kind, "seconds": seconds,
            "low": min(times), "high": max(times), "images_per_s": program["batch"] / seconds, "peak_mb": peak / 2**20,
            "compile_s": compile_s, "worst": max(apart.values()), "differences": apart,
            "versions": {"jax": jax.__version__, "numpy": np.__version__}, **(
                profiled(step) if platform == "gpu" else {})}


def _timed(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def profiled(step: Callable[[], None]) -> dict[str, Any]:
    """`busy`, of a few steps under JAX's profiler; {} where JAX is too old to read its own profiles."""
    import jax

    if not hasattr(jax.profiler, "ProfileData"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TRACED):
                step()
        files = list(Path(folder).rglob("*.xplane.pb"))
        return busy(jax.profiler.ProfileData.from_file(str(files[0])).planes, TRACED) if files else {}


def busy(planes: Iterable[Any], steps: int) -> dict[str, Any]:
    """`{"kernels", "busy_s"}` of one step: what ran on the streams of the GPUs, and how long; {} where nothing did."""
    durations = [event.duration_ns for plane in planes if plane.name.startswith("/device:GPU")
                 for line in plane.lines if line.name.startswith("Stream") for event in line.events]
    if not durations:
        return {}
    return {"kernels": round(len(durations) / steps), "busy_s": sum(durations) / steps / 1e9}


def main(argv: list[str] | None = None) -> int:
    """Prints a sentence, or the record with --json, which says in it whether the numbers agree.

    Returns:
      0; 1 where a sentence says that a number is wrong; 2 where the program cannot run here.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="NAME.json, beside NAME.hlo.gz")
    parser.add_argument("--platform", choices=("gpu", "cpu"), default="gpu", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="timed steps; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the whole record as one line")
    given = parser.parse_args(argv)
    path = Path(given.program)
    try:
        if not path.is_file():
            raise Unusable(f"There is no {path}; where TensorFlow is, python -m benchmarks.hlo.export writes programs")
        program = json.loads(path.read_text(encoding="utf-8"))
        record = run(program, gzip.decompress(path.with_suffix(".hlo.gz").read_bytes()), given.platform, given.steps)
    except Unusable as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    if given.json:
        print(json.dumps(record), flush=True)
        return 0
    print(f"{path.stem} on {record['card']}: {1e3 * record['seconds']:.3g} ms a step (median of {given.steps}, "
          f"{1e3 * record['low']:.3g} to {1e3 * record['high']:.3g}), {record['images_per_s']:.4g} images per second, "
          f"{record['peak_mb']:.0f} MB, compiled in {record['compile_s']:.1f} s; largest difference from TensorFlow "
          f"{record['worst']:.1e}" + (f": WRONG, {', '.join(record['wrong'])}" if record["wrong"] else ""))
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
