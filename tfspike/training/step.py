"""One update of the weights over all replicas, in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfspike import distribution
from tfspike.config.config import Config
from tfspike.models import diagnosis, losses
from tfspike.models.network import Network
from tfspike.neurons import noise
from tfspike.training.optimisation import decays


class TrainStep:
    """One step over all replicas, traced once: the same update as on one device with the global batch.

    Loss: the configured one (`tfspike.losses`), averaged over the global batch; what layers of one's own add to it
    (`add_loss`, `activity_regularizer`), a mean over replicas; and `spike_penalty` times the mean firing rate, which is
    logged beside it. The gradient is summed over all replicas, then clipped by its global norm, then L2 weight decay is
    added (not for AdamW, which decays on its own).

    Args:
      model, optimizer: built under `strategy`.
      strategy: of the run.
      config: of the run; `batch_size` is the global batch, and `jit` says whether XLA compiles the step as a whole.

    Attributes:
      compiled: whether XLA compiles the step as a whole.
      names: of the numbers that a step returns.

    Raises:
      UserError: `--jit=on` with several devices.
    """

    def __init__(self, model: Network, optimizer: Any, strategy: tf.distribute.Strategy, config: Config):
        self.model, self.optimizer, self.strategy, self.config = model, optimizer, strategy, config
        penalised = ["firing_rate", "spike_penalty"] if config.spike_penalty > 0 else []
        self.names = ["loss", *penalised, "correct", "stop",
                       *diagnosis.statistic_names(model.spiking_layers, model.trainable_variables)]
        self.compiled = distribution.compiles(config.jit, strategy.num_replicas_in_sync, config.deterministic)
        compute = noise.as_one_program(self._compute) if self.compiled else self._compute
        self._step = tf.function(compute, autograph=False, jit_compile=self.compiled or None)

    def __call__(self, images: Any, labels: Any, stop: bool = False) -> tf.Tensor:
        """Trains on one distributed batch; returns what `numbers` reads.

        Args:
          images, labels: of this worker.
          stop: this worker was asked to stop; every worker learns of it.
        """
        return self._step(images, labels, tf.constant(float(stop)))

    def graph(self, images: Any, labels: Any) -> Any:
        """The concrete function of such a batch, or of `tf.TensorSpec`s of one: what `benchmarks.launches` counts."""
        return self._step.get_concrete_function(images, labels, tf.TensorSpec((), tf.float32))

    def module(self, images: Any, labels: Any, stage: str = "optimized_hlo") -> Any:
        """The HLO of the step for such a batch, under `--jit=on`: as text, optimised by XLA; or another stage of
        `tf.function.experimental_get_compiler_ir`."""
        return self._step.experimental_get_compiler_ir(images, labels, tf.constant(0.0))(stage=stage)

    def numbers(self, values: tf.Tensor) -> dict[str, float]:
        """`{name: value}` of a step: loss (without the penalty of spikes), correct, stop, `diagnosis.layer_statistics`,
        and with a penalty firing_rate, spikes per neuron and step, and spike_penalty, what it adds to the loss."""
        return dict(zip(self.names, values.numpy().tolist()))

    def _compute(self, images: Any, labels: Any, stop: tf.Tensor) -> tf.Tensor:
        return distribution.first(self.strategy, self.strategy.run(self._replica, args=(images, labels, stop)))

    def _replica(self, images: tf.Tensor, labels: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        replicas = self.strategy.num_replicas_in_sync
        variables, penalty = self.model.trainable_variables, self.config.spike_penalty
        with tf.GradientTape() as tape:
            output, activity = self.model.observe(images, training=True, count_gradients=penalty > 0)
            per_record = losses.per_record(self.config.loss, output, labels, self.config.label_smoothing)
            loss = tf.reduce_sum(per_record) / self.config.batch_size
            for added in self.model.losses:
                loss += added / replicas
            minimised, sums = loss, {"loss": loss}
            if penalty > 0:
                rate = losses.firing_rate(activity, self.model.timesteps, self.config.batch_size)
                minimised = loss + penalty * rate
                sums |= {"firing_rate": rate, "spike_penalty": penalty * rate}
        grads = context.all_reduce(tf.distribute.ReduceOp.SUM, tape.gradient(minimised, variables))
        correct = tf.equal(tf.argmax(output, axis=-1, output_type=labels.dtype), labels)
        stats = diagnosis.layer_statistics(activity, self.model.timesteps, grads, variables)
        self._apply(grads, variables, replicas)
        sums |= {"correct": tf.reduce_sum(tf.cast(correct, tf.float32)), "stop": stop}
        sums |= {name: value / replicas for name, value in stats.items()}  # a mean over replicas, as a sum
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack([sums[name] for name in self.names]))

    def _apply(self, grads: list[tf.Tensor], variables: Sequence[Any], replicas: int) -> None:
        config = self.config
        if config.clip_norm > 0:
            grads, _ = tf.clip_by_global_norm(grads, config.clip_norm)
        if config.weight_decay > 0 and config.optimizer != "adamw":
            grads = [grad + config.weight_decay * variable.value if decays(variable) else grad
                     for grad, variable in zip(grads, variables)]
        # A Keras optimiser sums what it is given over the replicas; every replica gives the same share of the whole.
        self.optimizer.apply([grad / replicas for grad in grads] if replicas > 1 else grads, variables)
