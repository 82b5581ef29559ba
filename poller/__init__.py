"""Asks the broker, tells what changed: settings, catalogue, auth, broker, session, diff, contract, store, schedule."""
