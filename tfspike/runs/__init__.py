"""What lies in the folder of a run, and how to get its network back. Needs no TensorFlow until a network is built."""
