"""Real Slurm on one machine: an on-prem site and a cloud site."""
