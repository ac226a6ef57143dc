"""The numbers of the tables that `program.Program` writes and the compiled kernels walk."""

from __future__ import annotations

LANES = 16  # floats in a vector: channels of what is added to are padded to a multiple of it
STEPS = 8  # steps in a stretch: its spike lists stay in a cache

ENCODE, SYNAPSE, MASK = range(3)  # kinds of operations
FIRE, STORE, READ = range(3)  # what a synapse's current goes into
LEAK, RECTANGULAR, TRIANGULAR, ARCTAN, SIGMOID = range(5)  # what a trace is the sum of
# Layouts of the encoded input: spikes of -1 and 1, packed; `[B, ...]`, the same at every step; `[T, B, ...]`
TERNARY, CONSTANT, STEPWISE = range(3)

# Columns of the operations: what it is; the window and the map that it sees; what it fills
KIND, ONCE, SOURCE, OUT, TARGET, PLACE, RULE, WORDS, JUMPS = range(9)
KH, KW, SY, SX, PY, PX, HEIGHT, WIDTH, CHANNELS, POOL, PICK, OH, OW, COUT, PADDED = range(9, 24)
WEIGHTED, WEIGHTS, TRANSPOSED, GRADIENT, BASE, BASE_WIDTH, BASE_PICK, BASE_PIXELS, BASE_STEPS = range(24, 33)
SCATTERED = 33
OP_COLUMNS = 34
# Of their float32 constants
LEAKS, THRESHOLD, GAIN, STRETCH, SCALE = range(5)
NUMBER_COLUMNS = 5
# Of spike lists
STARTS, ENTRIES, LIST_HEIGHT, LIST_WIDTH, LIST_CHANNELS, VALUED, CONSTANT_LIST = range(7)
LIST_COLUMNS = 7
