"""Is the simulator right? A slice of a history on real Slurm, and simulated; both compared."""
