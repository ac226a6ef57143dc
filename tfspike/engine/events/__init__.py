"""The event-driven path on CPUs."""
