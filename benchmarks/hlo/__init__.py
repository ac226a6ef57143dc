"""tfspike's compiled steps on a machine that has JAX but no TensorFlow, beside PyTorch on the same card."""
