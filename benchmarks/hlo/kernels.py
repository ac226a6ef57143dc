"""How many kernels a GPU is given for one training step: XLA's own module for an H100, compiled without one.

    python -m venv cuda && cuda/bin/pip install "jax[cuda13]"          # 4 GB; Linux
    cuda/bin/python -m benchmarks.hlo.kernels                          # of the exported training steps

XLA compiles for a card that it is only told of, so this needs no GPU and times nothing. What it would try out on the
card (which algorithm a convolution takes, how a product is tiled) stays at its first choice.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from typing import Any

from benchmarks import launches
from benchmarks.hlo import plan

# NVIDIA's H100 SXM, of its data sheet and of CUDA's table of compute capability 9.0.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  name: "NVIDIA H100"
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 85899345920
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
"""


def module(hlo: bytes) -> str:
    """The text of what XLA makes of a program for an H100."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which asks the driver
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    import jax
    from jax.experimental import topologies
    from jax.extend.backend import get_compile_options
    from jax.extend.mlir import hlo_to_stablehlo
    from jax.interpreters import mlir
    from jaxlib.mlir import ir
    from jaxlib.xla_client import DeviceList

    jax.config.update("jax_enable_x64", True)
    devices = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1").devices[:1]
    with mlir.make_ir_context():
        program = ir.Module.parse(hlo_to_stablehlo(hlo))
        options = get_compile_options(num_replicas=1, num_partitions=1)
        executable = devices[0].client.compile(program, DeviceList(tuple(devices)), options)
    return "\n".join(part.to_string() for part in executable.hlo_modules())


def count(path: Any) -> dict[str, Any]:
    """`{"kernels", "compile_s"}` of one program."""
    program = json.loads(path.read_text(encoding="utf-8"))
    begin = time.perf_counter()
    text = module(gzip.decompress(path.with_suffix(".hlo.gz").read_bytes()))
    return {"kernels": launches.fused(text, program["chunks"]), "compile_s": round(time.perf_counter() - begin, 1)}


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON object for every training step that was exported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan.add_arguments(parser)
    given = parser.parse_args(argv)
    for case, gradient, precision in plan.programs(given.nets.split(","), given.precisions.split(",")):
        path = plan.path(given.folder, case, gradient, precision)
        if case.mode == "train" and path.exists():
            print(json.dumps({"program": path.stem, **count(path)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
