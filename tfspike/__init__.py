"""Train deep spiking neural networks from spikes, in TensorFlow/Keras (Lee et al. 2020)."""
__version__ = "0.1.0"
