"""The course engine: exercises, what judges them, and what a learner is told."""
