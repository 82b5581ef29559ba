"""One file per TR: what to ask, what comes back, what identifies a row, when it moves."""
