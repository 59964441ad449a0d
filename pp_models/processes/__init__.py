"""Neural processes: the models that the papers are compared with."""
