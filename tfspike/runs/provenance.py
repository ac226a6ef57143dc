"""Where a result comes from: versions, machine, commit, and the command that makes it again."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys

from tfspike import __version__, files
from tfspike.config import commands
from tfspike.config.config import Config


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import importlib.metadata

    found = {"tfspike": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("tensorflow", "tensorflow-cpu", "keras", "numpy", "tensorflow-datasets"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # TensorFlow is published under several names; what is not there computes nothing
    return found


def machine() -> str:
    """What computes, in words: the processor, the threads that this process may use, and GPUs."""
    import tensorflow as tf

    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except (OSError, ValueError):  # not Linux
        models = []
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processor = models[0] if models else platform.processor() or platform.machine()
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            for gpu in tf.config.list_physical_devices("GPU")]
    cards = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    return ", ".join([processor, f"{threads} threads", *cards])


def commit() -> str | None:
    """The commit of the source that runs, with "+" where files were changed since; None where it is in no repository:
    one that it is installed in, in a .venv below a project, says nothing of it."""
    try:
        def git(*args: str) -> str:
            return subprocess.run(["git", "-C", files.PACKAGE, *args], capture_output=True, text=True, timeout=10,
                                  check=True).stdout.strip()

        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command() -> str:
    """The command line of this process, with -m where it is a module's."""
    if commands.front():
        return shlex.join([*commands.front(), *sys.argv[1:]])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = sys.argv[:1] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *program, *sys.argv[1:]])


def to_copy(name: str, **flags: str) -> str:
    """A command for the reader to copy from the screen, quoted for a shell, in the words that called this process.

    Args:
      name: one of `tfspike.config.commands.COMMANDS`.
      flags: name and value of each.

    Examples:
      >>> to_copy("convert", run="my runs/ann")
      "python -m tfspike.conversion '--run=my runs/ann'"
    """
    return shlex.join([*commands.words(name), *(f"--{flag}={value}" for flag, value in flags.items())])


def continuing_command(config: Config) -> str:
    """The command that goes on with a run."""
    return to_copy("train", config=os.path.join(str(config.workdir), "config.json"))


_LEFT_OUT = ("data_dir", "workdir")  # flags that name a place on the machine and nothing else


def without_paths(command: str) -> str:
    """A command line without the places of the machine that it ran on.

    Examples:
      >>> without_paths("python /home/me/train.py --preset=quick --data_dir=/data --config=/home/me/a.json --seed 1")
      'python train.py --preset=quick --config=a.json --seed 1'
    """
    try:
        words = shlex.split(command)
    except ValueError:  # not a command line: nothing that could be run again
        return ""
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.lstrip("-") if name.startswith("-") else ""
        if skip or flag in _LEFT_OUT:
            skip = not skip and not equals  # --workdir DIR: the next word goes as well
        elif equals and flag:
            kept.append(f"{name}={_last_part(value)}")
        else:
            kept.append(_last_part(word))
    return shlex.join(kept)


def _last_part(text: str) -> str:
    outside = text.startswith(("/", "~", "..")) or os.path.isabs(text)
    return os.path.basename(text.rstrip("/")) if outside else text
