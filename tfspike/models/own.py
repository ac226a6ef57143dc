"""Surrogates and neurons of the user's own, by the names that flags and config.json have for them: MODULE:NAME.

    train.py --surrogate=my_module:superspike --neuron=my_module:Adaptive

The module is looked for in the current folder, and then where Python looks for any other. The folder of a run holds no
code and none of it is executed: whoever resumes, tests or exports such a run needs the module as well.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import keras

from tfspike.config.settings import closest, is_own, shown
from tfspike.errors import UserError, first_line
from tfspike.neurons import surrogates
from tfspike.neurons.layers import LIF


def load(surrogate: str, neuron: str) -> str | type[LIF]:
    """Takes what two settings name, where it is the user's own: a surrogate is registered under the name it has here.

    Returns:
      What `models.create` takes for `neuron`: the class, or a name of the library's as it is.

    Raises:
      UserError: there is no such module, function or class; the function is no surrogate (`surrogates.register`); or
        the class is no subclass of `LIF` that is constructed as `LIF` is.
    """
    if is_own(surrogate) and surrogate not in surrogates.names():
        surrogates.register(surrogate, _named("surrogate", surrogate))
    return _neuron(neuron) if is_own(neuron) else neuron


def _neuron(name: str) -> type[LIF]:
    found = _named("neuron", name)
    if not isinstance(found, type) or not issubclass(found, LIF):
        raise UserError(f"--neuron={name} must be a subclass of tfspike.LIF; it is {shown(found)}.")
    options = [option for option in inspect.signature(LIF).parameters.values() if option.default is not option.empty]
    try:
        found(*(option.default for option in options), dtype="float32", name="trial")
    except Exception as error:  # whatever a constructor of the user's raises
        raise UserError(f"--neuron={name} must be constructed as tfspike.LIF is, with "
                        f"{', '.join(option.name for option in options)}, dtype and name; it fails "
                        f"({first_line(error)}).") from error
    if keras.saving.get_registered_name(found) == found.__name__:  # or .keras files could not name it
        keras.saving.register_keras_serializable(name.partition(":")[0])(found)
    return found


def checksums(names: Iterable[str]) -> dict[str, int]:
    """`{name: CRC-32 of the file of its module}` of the user's own among some names, which were loaded before."""
    found = {}
    for name in filter(is_own, names):
        file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
        if file is not None:
            with open(file, "rb") as source:
                found[name] = zlib.crc32(source.read())
    return found


def _named(flag: str, name: str) -> Any:
    """What MODULE:NAME means."""
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):  # it lacks one itself
            raise _broken(flag, name, error) from error
        raise UserError(f"--{flag}={name} needs the Python module {error.name}, which is neither in {here} nor among "
                        "the installed ones; start the command in the folder of that file, or put that folder on "
                        "PYTHONPATH.") from None
    except (Exception, SystemExit) as error:  # whatever a module of the user's raises
        raise _broken(flag, name, error) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not hasattr(module, attribute):
        raise UserError(f"--{flag}={name}: {getattr(module, '__file__', None) or module_name} defines no {attribute}."
                        f"{closest(attribute, dir(module))}")
    return getattr(module, attribute)


def _broken(flag: str, name: str, error: BaseException) -> UserError:
    return UserError(f"--{flag}={name}: its module cannot be imported ({first_line(error)}); mend it first.")
