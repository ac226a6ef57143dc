"""The trained weights that come with the library: where they lie, and their names. Needs no TensorFlow."""

from tfspike.weights.names import FOLDER as FOLDER
from tfspike.weights.names import available as available
from tfspike.weights.names import is_meant as is_meant
