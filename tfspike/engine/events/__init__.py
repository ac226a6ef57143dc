"""The event-driven road on CPUs."""
