"""Reference posteriors: NUTS on NumPyro twins, and SWAG."""
