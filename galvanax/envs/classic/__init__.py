"""Classic control systems."""
