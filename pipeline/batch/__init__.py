"""Many slides: planning, output locations, locks, progress and clusters."""
