"""Reads the streams: of the poller it knows the contract and nothing else."""
