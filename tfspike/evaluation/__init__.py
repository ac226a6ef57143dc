"""What eval.py does: accuracy, predictions, reports."""

from tfspike.faces import on_use

_HOME = {"Evaluator": "evaluator", "Result": "evaluator",
         "describe": "command", "evaluate_run": "command", "json_line": "command", "predict": "command",
         "run": "command"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
