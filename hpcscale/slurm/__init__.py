"""How Slurm is asked: transports, clients, the state table."""
