"""Changes go in; alerts come out: rules that think (pure), decisions that are written once."""
