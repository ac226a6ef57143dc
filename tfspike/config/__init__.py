"""Settings, flags, recipes, presets. Needs no TensorFlow."""

from tfspike.config.config import (
    DATASET_ALIASES,
    DATASETS,
    EVENT_DATASETS,
    EXTRA_DATASETS,
    FIELDS,
    NEURONS,
    RESUME_WORDS,
    SPIKING_ONLY,
    SURROGATES,
    Config,
    RunOptions,
)
from tfspike.config.files import from_json, read_run, read_settings, to_json
from tfspike.config.identity import check_resumable, default_workdir, diff, digest
from tfspike.config.resolving import Resolved, resolve, resolve_with_notes

__all__ = ["Config", "DATASETS", "DATASET_ALIASES", "EVENT_DATASETS", "EXTRA_DATASETS", "FIELDS", "NEURONS",
           "RESUME_WORDS", "Resolved", "RunOptions", "SPIKING_ONLY", "SURROGATES", "check_resumable",
           "default_workdir", "diff", "digest", "from_json", "read_run", "read_settings", "resolve",
           "resolve_with_notes", "to_json"]
