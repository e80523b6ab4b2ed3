"""Legged robots that are asked to walk at a velocity."""
