"""First weights of convolutions from spikes alone, without labels: spike-timing-dependent plasticity (STDP).

    python -m tfspike.stdp --model=lenet --dataset=mnist_subset --workdir=runs/stdp
    python train.py --model=lenet --dataset=mnist_subset --init_from=runs/stdp

`tfspike.stdp.rules` has the two rules, `stack` has them learn a network layer by layer.
"""

from typing import TYPE_CHECKING

from tfspike.faces import on_use

if TYPE_CHECKING:  # what _HOME says, for type checkers
    from tfspike.stdp.rules import RULES as RULES
    from tfspike.stdp.stack import pretrain as pretrain

_HOME = {"RULES": "rules", "pretrain": "stack"}

__all__ = sorted(_HOME)

__getattr__ = on_use(__name__, _HOME)
