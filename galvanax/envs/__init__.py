"""Classic systems and legged robots; `robots/` holds their MJCF files."""
