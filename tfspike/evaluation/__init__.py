"""What eval.py does: accuracy, predictions, reports."""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.evaluation.command import describe as describe
    from tfspike.evaluation.command import evaluate_run as evaluate_run
    from tfspike.evaluation.command import json_line as json_line
    from tfspike.evaluation.command import predict as predict
    from tfspike.evaluation.command import run as run
    from tfspike.evaluation.evaluator import Evaluator as Evaluator
    from tfspike.evaluation.evaluator import Result as Result

_HOME = {"Evaluator": "evaluator", "Result": "evaluator",
         "describe": "command", "evaluate_run": "command", "json_line": "command", "predict": "command",
         "run": "command"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
