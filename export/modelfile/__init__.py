"""Modelfiles for a file, and what is wrong with one."""
